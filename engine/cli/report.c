/* SPDX-License-Identifier: BSD-2-Clause */
/* What both forms of the report share: names, exit status, and text that is safe to print. */
#include "report.h"

#include <stdbool.h>

const char *cli_side_name(enum mf_side side)
{
	return side == MF_SOURCE ? "source" : "destination";
}

const char *cli_verdict_name(enum mf_verdict verdict)
{
	switch (verdict) {
	case MF_OK:
		return "ok";
	case MF_WARN:
		return "warn";
	case MF_REFUSE:
		break;
	}
	return "refuse";
}

enum cli_exit cli_exit_of_error(int code)
{
	switch (code) {
	case 0:
		return CLI_EXIT_MOVED;
	case -MF_EUSAGE:
		return CLI_EXIT_USAGE;
	case -MF_EREFUSED:
		return CLI_EXIT_REFUSED;
	case -MF_EINDOUBT:
	case -MF_EPAUSED:
		return CLI_EXIT_UNFINISHED;
	default:
		return CLI_EXIT_FAILED;
	}
}

enum cli_exit cli_exit_of_report(const struct mf_report *report)
{
	switch (report->outcome) {
	case MF_OUTCOME_PAUSED:
	case MF_OUTCOME_IN_DOUBT:
		return CLI_EXIT_UNFINISHED;
	case MF_OUTCOME_COMPLETED:
		/* The guest moved; found wrong afterwards is still not a success. */
		return report->error.code || report->verify_mismatches ? CLI_EXIT_FAILED
								       : CLI_EXIT_MOVED;
	case MF_OUTCOME_CHECKED:
		return cli_exit_of_error(report->error.code);
	case MF_OUTCOME_NONE:
	case MF_OUTCOME_ABORTED:
		break;
	}
	return report->error.code ? cli_exit_of_error(report->error.code) : CLI_EXIT_FAILED;
}

/* Length of the valid UTF-8 sequence at s that is no control character; 0: none. */
static size_t sequence_length(const unsigned char *s)
{
	if (s[0] < 0x80)
		return s[0] >= 0x20 && s[0] != 0x7f;
	size_t n = s[0] >= 0xc2 && s[0] < 0xe0   ? 2
		   : (s[0] & 0xf0) == 0xe0       ? 3
		   : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
						 : 0;
	for (size_t i = 1; i < n; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	}
	bool bad = !n || (s[0] == 0xc2 && s[1] < 0xa0) || /* C1 controls */
		   (s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
		   (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f);
	return bad ? 0 : n;
}

const char *cli_clean(const char *text, char *buf, size_t cap)
{
	const unsigned char *s = (const unsigned char *)text;
	size_t at = 0;

	while (*s) {
		size_t n = sequence_length(s);
		if (at + (n ? n : 1) >= cap)
			break;
		if (!n) {
			buf[at++] = '?';
			s++;
		}
		for (; n; n--)
			buf[at++] = (char)*s++;
	}
	buf[at] = '\0';
	return buf;
}
