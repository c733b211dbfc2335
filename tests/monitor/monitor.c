/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * A monitor to look at: how a program on raw KVM moves its guest with memferry.
 *
 *   monitor destination ADDRESS[:PORT] [--transport auto|tcp|verbs]
 *   monitor source ADDRESS:PORT [--mode hybrid|precopy|postcopy|warm|cold] [--tracker kvmlog|kvmring|pagemap]
 *                               [--transport …] [--pages N] [--seconds N]
 *
 * The source runs the bare guest for a while and moves it.  The destination takes it, lets it run on, and says whether
 * every page, register, clock and device was right: exit 0.  Plain control channel: for tests only.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "move.h"

struct options {
	bool is_destination;
	struct move_params move;
	struct machine_params machine;
	unsigned seconds;
};

static int usage(void)
{
	fprintf(stderr, "usage: monitor source|destination ADDRESS [--mode MODE] [--tracker NAME] "
			"[--transport NAME] [--pages N] [--seconds N]\n");
	return 2;
}

static bool parse_mode(const char *text, enum mf_mode *ret)
{
	for (enum mf_mode mode = 0; mode < MF_MODE_COUNT; mode++) {
		if (!strcmp(text, mf_mode_name(mode))) {
			*ret = mode;
			return true;
		}
	}
	return false;
}

static bool parse_option(struct options *o, const char *name, const char *value)
{
	char *end;
	if (!strcmp(name, "--mode"))
		return parse_mode(value, &o->move.mode);
	if (!strcmp(name, "--tracker")) {
		o->move.tracker = value;
		/* What KVM can tell depends on what was enabled before the first vCPU. */
		o->machine.way = !strcmp(value, "kvmring")  ? MF_KVM_TRACK_RING
				 : !strcmp(value, "kvmlog") ? MF_KVM_TRACK_LOG
							    : MF_KVM_TRACK_NONE;
		return true;
	}
	if (!strcmp(name, "--transport")) {
		o->move.transport = value;
		return true;
	}
	unsigned long n = strtoul(value, &end, 10);
	if (*end || !*value)
		return false;
	if (!strcmp(name, "--pages"))
		o->machine.n_pages = (uint32_t)n & ~1u;
	else if (!strcmp(name, "--seconds"))
		o->seconds = (unsigned)n;
	else
		return false;
	return o->machine.n_pages >= 512 && o->machine.n_pages <= PAGES_MAX;
}

static bool parse(struct options *o, int argc, char **argv)
{
	*o = (struct options){ .machine = { .mode = GUEST_CHECKS, .n_pages = 4096, .loud = true },
			       .seconds = 2 };
	if (argc < 3 || argc % 2 == 0)
		return false;
	o->is_destination = !strcmp(argv[1], "destination");
	if (!o->is_destination && strcmp(argv[1], "source") != 0)
		return false;
	o->machine.is_destination = o->is_destination;
	o->move.address = argv[2];
	o->move.loud = true;
	for (int i = 3; i < argc; i += 2) {
		if (!parse_option(o, argv[i], argv[i + 1]))
			return false;
	}
	return true;
}

/* Lets the guest run; false: it says that something is wrong, or stands. */
static bool let_run(struct machine *m, unsigned seconds, const char *who)
{
	char text[200];
	for (unsigned i = 0; i < seconds; i++) {
		uint64_t before = machine_life(m);
		(void)sleep(1);
		machine_tell(m, who);
		if (machine_wrong(m, text, sizeof(text))) {
			printf("WRONG: %s\n", text);
			return false;
		}
		if (machine_life(m) == before) {
			printf("WRONG: the guest stands\n");
			return false;
		}
	}
	return true;
}

static bool check_at_destination(struct machine *m, unsigned seconds)
{
	uint64_t pit = m->box->pit_ticks, apic = m->box->vcpu[0].apic_ticks;
	if (!let_run(m, seconds, "destination"))
		return false;
	if (m->box->pit_ticks == pit || m->box->vcpu[0].apic_ticks == apic) {
		printf("WRONG: a timer does not tick any more\n");
		return false;
	}
	machine_stop(m);
	uint32_t wrong = machine_wrong_pages(m);
	if (wrong) {
		printf("WRONG: %u pages\n", wrong);
		return false;
	}
	printf("RIGHT: %u pages, registers, clocks and devices\n", m->params.n_pages);
	return true;
}

static int run(struct options *o, struct machine *m)
{
	struct move move;
	struct mf_error err = { 0 };
	char run_dir[] = "/tmp/monitor.XXXXXX";
	bool ok;

	machine_start(m);
	if (!o->is_destination && !let_run(m, o->seconds, "source"))
		return 1;
	o->move.run_dir = mkdtemp(run_dir);
	if (!o->move.run_dir || move_start(&move, m, &o->move, &err) < 0) {
		fprintf(stderr, "monitor: %s\n", err.msg);
		return 1;
	}
	int r = move_wait(&move, &err);
	const struct mf_report *report = move_report(&move);
	printf("%s, %u rounds, tracker \"%s\", downtime %llu ms\n",
	       mf_outcome_name(report->outcome), report->n_rounds, report->tracker,
	       (unsigned long long)report->downtime_ms);
	if (r < 0)
		fprintf(stderr, "monitor: %s\n", err.msg);
	ok = r >= 0;
	move_end(&move);
	if (ok && o->is_destination)
		ok = check_at_destination(m, o->seconds);
	return ok ? 0 : 1;
}

int main(int argc, char **argv)
{
	static struct machine m;
	struct options o;
	if (!parse(&o, argc, argv))
		return usage();
	const char *why = machine_lacks();
	if (why) {
		printf("SKIP: %s\n", why);
		return 77;
	}
	why = machine_open(&m, &o.machine);
	if (why)
		fprintf(stderr, "monitor: %s\n", why);
	int status = why ? 1 : run(&o, &m);
	machine_close(&m);
	return status;
}
