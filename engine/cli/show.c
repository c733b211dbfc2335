/* SPDX-License-Identifier: BSD-2-Clause */
#include "show.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "report.h"

#define LIVE_INTERVAL_MS 250
#define JSON_INTERVAL_MS 500
#define LINE_CAP         320

/* From the eleventh round on people see one a second: warm mode makes them by the thousand. */
#define ROUNDS_SHOWN      10
#define ROUND_INTERVAL_US 1000000u

/* The sequence that empties the line the cursor is on. */
#define ERASE_LINE "\r\033[K"

struct cli_show {
	FILE *out, *err;
	bool json, is_check, live;

	pthread_mutex_t lock; /* guards what follows, and both streams */
	pthread_cond_t stop;  /* is_stopping became true */
	bool is_running, is_stopping;
	pthread_t ticker;
	const struct cli_view *view;
	uint64_t last_round_us;
	char line[LINE_CAP]; /* the live line as it stands on the terminal; "": none */
};

static bool is_capable_terminal(FILE *stream)
{
	const char *term = getenv("TERM");

	return isatty(fileno(stream)) && term && term[0] && strcmp(term, "dumb") != 0;
}

int cli_show_create(FILE *out, FILE *err, bool json, bool is_check, struct cli_show **ret,
		    struct mf_error *error)
{
	pthread_condattr_t attr;
	struct cli_show *show = calloc(1, sizeof(*show));

	if (!show)
		return base_error_sys(error, -ENOMEM, MF_SCOPE_HOST, "display");
	show->out = out;
	show->err = err;
	show->json = json;
	show->is_check = is_check;
	show->live = !json && is_capable_terminal(err);
	(void)pthread_mutex_init(&show->lock, NULL);
	(void)pthread_condattr_init(&attr);
	(void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	(void)pthread_cond_init(&show->stop, &attr);
	(void)pthread_condattr_destroy(&attr);
	*ret = show;
	return 0;
}

static unsigned terminal_width(const struct cli_show *show)
{
	struct winsize size;

	if (!ioctl(fileno(show->err), TIOCGWINSZ, &size) && size.ws_col)
		return size.ws_col;
	return 80;
}

/* The lock is held.  One write for a whole change, so that nothing flickers. */
static void replace_live_line(struct cli_show *show, const char *line)
{
	if (!strcmp(show->line, line))
		return;
	fprintf(show->err, ERASE_LINE "%s", line);
	(void)fflush(show->err);
	(void)snprintf(show->line, sizeof(show->line), "%s", line);
}

/* Nothing moves while the destination waits for its source, so there is nothing to tell. */
static bool is_worth_showing(const struct mf_progress *p)
{
	if (p->phase == MF_PHASE_IDLE || p->phase >= MF_PHASE_DONE)
		return false;
	return p->phase != MF_PHASE_CONNECT || p->side == MF_SOURCE;
}

static void tick(struct cli_show *show)
{
	struct mf_progress progress;
	char line[LINE_CAP] = "";

	show->view->progress(show->view->session, &progress);
	bool worth = is_worth_showing(&progress);
	if (show->json) {
		if (worth)
			cli_json_print(show->out, cli_json_progress("progress", &progress));
		return;
	}
	if (worth)
		(void)cli_format_live(&progress, terminal_width(show), line, sizeof(line));
	replace_live_line(show, line);
}

static void *run_ticker(void *arg)
{
	struct cli_show *show = arg;
	uint64_t interval_us = (show->json ? JSON_INTERVAL_MS : LIVE_INTERVAL_MS) * 1000u;

	(void)pthread_setname_np(pthread_self(), "show");
	(void)pthread_mutex_lock(&show->lock);
	for (uint64_t next = base_now_us() + interval_us; !show->is_stopping;) {
		struct timespec at = { .tv_sec = (time_t)(next / 1000000u),
				       .tv_nsec = (long)(next % 1000000u * 1000u) };
		if (pthread_cond_timedwait(&show->stop, &show->lock, &at) != ETIMEDOUT)
			continue;
		if (!show->is_stopping)
			tick(show);
		next = base_now_us() + interval_us;
	}
	(void)pthread_mutex_unlock(&show->lock);
	return NULL;
}

int cli_show_start(struct cli_show *show, const struct cli_view *view, struct mf_error *error)
{
	if (!show->json && !show->live)
		return 0;
	show->view = view;
	int r = pthread_create(&show->ticker, NULL, run_ticker, show);
	if (r)
		return base_error_sys(error, -r, MF_SCOPE_HOST, "display: start a thread");
	show->is_running = true;
	return 0;
}

void cli_show_stop(struct cli_show *show)
{
	if (!show->is_running)
		return;
	(void)pthread_mutex_lock(&show->lock);
	show->is_stopping = true;
	(void)pthread_cond_signal(&show->stop);
	(void)pthread_mutex_unlock(&show->lock);
	(void)pthread_join(show->ticker, NULL);
	show->is_running = false;
	replace_live_line(show, "");
}

void cli_show_destroy(struct cli_show *show)
{
	if (!show)
		return;
	cli_show_stop(show);
	(void)pthread_cond_destroy(&show->stop);
	(void)pthread_mutex_destroy(&show->lock);
	free(show);
}

/* The lock is held.  An ordinary line, above the live one when there is one. */
static void print_line(struct cli_show *show, const char *line)
{
	char clean[LINE_CAP];

	fprintf(show->err, "%s%s\n%s", show->line[0] ? ERASE_LINE : "",
		cli_clean(line, clean, sizeof(clean)), show->line);
	(void)fflush(show->err);
}

static bool is_round_due(struct cli_show *show, const struct mf_round *round)
{
	uint64_t now = base_now_us();

	if (round->n > ROUNDS_SHOWN && now < show->last_round_us + ROUND_INTERVAL_US)
		return false;
	show->last_round_us = now;
	return true;
}

static void print_event(struct cli_show *show, const struct mf_event *event)
{
	const char *text = event->text ? event->text : "";
	char line[LINE_CAP];

	switch (event->type) {
	case MF_EVENT_LISTENING:
		(void)snprintf(line, sizeof(line), "listening at %s", text);
		break;
	case MF_EVENT_CONNECTED:
		(void)snprintf(line, sizeof(line), "connected to %s", text);
		break;
	case MF_EVENT_TRANSPORT:
		(void)snprintf(line, sizeof(line), "transport %s", text);
		break;
	case MF_EVENT_FINDING:
		if (show->is_check || !event->finding || event->finding->verdict == MF_OK)
			return;
		(void)snprintf(line, sizeof(line), "preflight: %s: %s: %s",
			       cli_verdict_name(event->finding->verdict), event->finding->subject,
			       event->finding->detail);
		break;
	case MF_EVENT_PHASE:
		/* The live line shows it, and so does what "listening" and the report say. */
		if (show->live || event->phase <= MF_PHASE_CONNECT || event->phase >= MF_PHASE_DONE)
			return;
		(void)snprintf(line, sizeof(line), "phase: %s", mf_phase_name(event->phase));
		break;
	case MF_EVENT_ROUND:
		if (!event->round || !is_round_due(show, event->round))
			return;
		cli_text_round(event->round, line, sizeof(line));
		break;
	case MF_EVENT_NOTICE:
		(void)snprintf(line, sizeof(line), "note: %s", text);
		break;
	case MF_EVENT_RUNNING:
		(void)snprintf(line, sizeof(line), "the guest runs here");
		break;
	default:
		return;
	}
	print_line(show, line);
}

void cli_show_event(struct cli_show *show, const struct mf_event *event)
{
	(void)pthread_mutex_lock(&show->lock);
	if (show->json)
		cli_json_print(show->out, cli_json_event(event));
	else
		print_event(show, event);
	(void)pthread_mutex_unlock(&show->lock);
}

void cli_show_notice(struct cli_show *show, const char *text)
{
	cli_show_event(show, &(struct mf_event){ .type = MF_EVENT_NOTICE, .text = text });
}
