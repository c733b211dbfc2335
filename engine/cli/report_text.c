/* SPDX-License-Identifier: BSD-2-Clause */
/* The report for people.  Nothing may parse it: --json is for that. */
#include <inttypes.h>

#include "base/cleanup.h"
#include "base/parse.h"
#include "report.h"

#define SIZE_TEXT 32
#define PAGE      4096u

const char *cli_format_ms(uint64_t ms, char *buf, size_t cap)
{
	uint64_t s = ms / 1000;

	if (ms < 1000)
		(void)snprintf(buf, cap, "%" PRIu64 " ms", ms);
	else if (s < 60)
		(void)snprintf(buf, cap, "%.1f s", (double)ms / 1000);
	else if (s < 3600)
		(void)snprintf(buf, cap, "%" PRIu64 "m %02" PRIu64 "s", s / 60, s % 60);
	else
		(void)snprintf(buf, cap, "%" PRIu64 "h %02" PRIu64 "m", s / 3600, s / 60 % 60);
	return buf;
}

void cli_text_round(const struct mf_round *round, char *buf, size_t cap)
{
	char written[SIZE_TEXT], zero[SIZE_TEXT], dirty[SIZE_TEXT], took[SIZE_TEXT];

	(void)snprintf(buf, cap, "round %" PRIu32 ": %s written, %s zero, %s dirtied meanwhile, %s",
		       round->n, base_format_size(round->bytes, written, sizeof(written)),
		       base_format_size(round->zero_pages * PAGE, zero, sizeof(zero)),
		       base_format_size(round->dirty_pages * PAGE, dirty, sizeof(dirty)),
		       cli_format_ms(round->ms, took, sizeof(took)));
}

void cli_text_findings(FILE *to, const struct mf_report *r)
{
	static const char *const marks[] = { "ok", "WARN", "REFUSE" };
	char subject[64], detail[256];

	for (uint32_t i = 0; i < r->n_findings && i < BASE_ARRAY_LEN(r->findings); i++) {
		const struct mf_finding *f = &r->findings[i];
		fprintf(to, "  %-6s  %s: %s\n",
			marks[f->verdict <= MF_REFUSE ? f->verdict : MF_REFUSE],
			cli_clean(f->subject, subject, sizeof(subject)),
			cli_clean(f->detail, detail, sizeof(detail)));
	}
}

static void print_outcome(FILE *to, const struct mf_report *r)
{
	bool here = r->side == MF_DESTINATION;
	char session[MF_SESSION_NAME_MAX + 1];

	(void)cli_clean(r->session[0] ? r->session : "SESSION", session, sizeof(session));
	switch (r->outcome) {
	case MF_OUTCOME_COMPLETED:
		fprintf(to, "moved: the guest runs %s\n", here ? "here" : "at the destination");
		break;
	case MF_OUTCOME_NONE:
	case MF_OUTCOME_ABORTED:
		fprintf(to, "%s: the guest stays %s, unharmed\n",
			r->error.code == -MF_ECANCELED ? "canceled" : "not moved",
			here ? "at the source" : "here, at the source");
		break;
	case MF_OUTCOME_PAUSED:
		fprintf(to,
			"paused in post-copy: the guest belongs to the destination and waits there "
			"for "
			"pages that only the source has\n"
			"  Keep both monitors and both run directories, and do not resume the "
			"guest at the "
			"source.\n"
			"  What goes on from here is memferry receive --resume %s at the "
			"destination with "
			"memferry send --resume %s at the source, which this version does not have "
			"yet.\n",
			session, session);
		break;
	case MF_OUTCOME_IN_DOUBT:
		fprintf(to, "in doubt: the guest was handed over, and whether it runs at the "
			    "destination is not "
			    "known\n"
			    "  Ask there with memferry status, or ask the guest's monitor there.  "
			    "If it runs "
			    "there, end it here.\n"
			    "  Resume it here only when it is certain that it never ran there: two "
			    "running "
			    "copies destroy its disks.\n");
		break;
	case MF_OUTCOME_CHECKED:
		fprintf(to, "checked: %s; nothing was moved\n",
			r->error.code ? "the move would be refused" : "the move can go ahead");
		break;
	}
}

static void print_transport(FILE *to, const struct mf_report *r)
{
	char name[32], reason[256];

	if (!r->transport || !r->transport[0])
		return;
	fprintf(to, "  transport   %s: %s\n", cli_clean(r->transport, name, sizeof(name)),
		cli_clean(r->transport_reason, reason, sizeof(reason)));
	if (r->sealing)
		fprintf(to, "  pages       %s on their way\n",
			r->sealing == MF_SEALING_ENCRYPT ? "encrypted" : "protected from change");
}

static void print_postcopy(FILE *to, const struct mf_report *r)
{
	const struct mf_postcopy_report *p = &r->postcopy;
	char took[SIZE_TEXT], pulled[SIZE_TEXT];

	if (!r->has_postcopy)
		return;
	fprintf(to, "  post-copy   %s, %s pulled, %" PRIu64 " faults",
		cli_format_ms(p->ms, took, sizeof(took)),
		base_format_size(p->pulled_pages * PAGE, pulled, sizeof(pulled)), p->faults);
	if (p->faults)
		fprintf(to, " (p50 %" PRIu64 " us, p99 %" PRIu64 " us, longest %" PRIu64 " us)",
			p->latency_us.p50, p->latency_us.p99, p->latency_us.max);
	(void)fputc('\n', to);
}

/* What each rail carried, where there is more to say than how much in all. */
static void print_rails(FILE *to, const struct mf_report *r)
{
	char device[80], written[SIZE_TEXT], read[SIZE_TEXT], pinned[SIZE_TEXT], took[SIZE_TEXT];

	for (uint32_t i = 0; i < r->n_rails; i++) {
		const struct mf_rail_report *rail = &r->rails[i];
		uint64_t bytes_written = 0, bytes_read = 0;
		for (uint32_t k = 0; k < r->n_lanes; k++) {
			if (r->lanes[k].rail == i) {
				bytes_written += r->lanes[k].bytes_written;
				bytes_read += r->lanes[k].bytes_read;
			}
		}
		if (r->n_rails == 1 || !rail->joined)
			continue;
		fprintf(to, "  %-11s %s%s%s written, %s read", rail->transport,
			cli_clean(rail->device, device, sizeof(device)),
			rail->device[0] ? ": " : "",
			base_format_size(bytes_written, written, sizeof(written)),
			base_format_size(bytes_read, read, sizeof(read)));
		if (rail->bytes_pinned)
			fprintf(to, "; %s pinned in %s",
				base_format_size(rail->bytes_pinned, pinned, sizeof(pinned)),
				cli_format_ms(rail->registration_ms, took, sizeof(took)));
		fprintf(to, "%s%s\n", rail->place[0] ? "; " : "", rail->place);
	}
}

static void print_bytes(FILE *to, const struct mf_report *r)
{
	char written[SIZE_TEXT], read[SIZE_TEXT], zero[SIZE_TEXT], resent[SIZE_TEXT];

	fprintf(to,
		"  bytes       %s written, %s read; %s of the guest was zero, %s went more than "
		"once\n",
		base_format_size(r->bytes_written, written, sizeof(written)),
		base_format_size(r->bytes_read, read, sizeof(read)),
		base_format_size(r->pages_zero * PAGE, zero, sizeof(zero)),
		base_format_size(r->pages_resent * PAGE, resent, sizeof(resent)));
}

void cli_text_report(FILE *to, const struct mf_report *r)
{
	char total[SIZE_TEXT], down[SIZE_TEXT];

	print_outcome(to, r);
	if (r->outcome == MF_OUTCOME_CHECKED) {
		print_transport(to, r);
		return;
	}
	print_transport(to, r);
	/* Without a page moved there is no more to tell. */
	if (!r->n_rounds && !r->has_postcopy && r->outcome != MF_OUTCOME_COMPLETED)
		return;
	fprintf(to, "  mode        %s\n", mf_mode_name(r->mode));
	if (r->tracker[0])
		fprintf(to, "  tracker     %s\n", r->tracker);
	fprintf(to, "  time        %s", cli_format_ms(r->total_ms, total, sizeof(total)));
	if (r->outcome == MF_OUTCOME_COMPLETED || r->downtime_ms)
		fprintf(to, ", downtime %s", cli_format_ms(r->downtime_ms, down, sizeof(down)));
	fprintf(to, "\n  rounds      %" PRIu32 "\n", r->n_rounds);
	print_bytes(to, r);
	print_rails(to, r);
	print_postcopy(to, r);
	if (r->recoveries)
		fprintf(to, "  recovered   %" PRIu32 " times from a lost connection\n",
			r->recoveries);
	if (r->has_verify)
		fprintf(to, "  verify      %" PRIu64 " pages compared, %" PRIu64 " wrong\n",
			r->verify_pages, r->verify_mismatches);
	fprintf(to, "  cpu         %.2f s user, %.2f s system\n", (double)r->cpu_user_ms / 1000,
		(double)r->cpu_system_ms / 1000);
}
