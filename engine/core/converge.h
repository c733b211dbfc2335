/* SPDX-License-Identifier: BSD-2-Clause */
/* What to do after a round of pre-copy: a pure function of what was measured. */
#ifndef CORE_CONVERGE_H
#define CORE_CONVERGE_H

#include <memferry/session.h>

/* What a switchover costs without a page: pause, state, hand-off.  Replaced by nothing better before it was
 * done once; QEMU's is 25 to 40 ms. */
#define CONVERGE_SWITCHOVER_US 40000

/* Fed once a round; zeroed before the first. */
struct converge {
	uint64_t bytes_per_s; /* of the data plane; kept from the last round that was long enough */
	uint64_t last_dirty;  /* bytes dirty after the round before */
	uint32_t rounds;
	uint32_t stalled; /* rounds in a row that did not shrink */
};

struct converge_input {
	enum mf_mode mode;
	uint64_t round_us, round_bytes; /* written in the round that ended */
	uint64_t dirty_bytes;           /* found after it */
	uint64_t overhead_us;           /* of a switchover without any page: pause, state, resume */
	uint64_t max_downtime_us;
	uint64_t safe_bytes; /* no post-copy while more than these are missing; 0: no such limit */
	bool cutover, postcopy; /* requests */
};

enum converge_verdict {
	CONVERGE_AGAIN,    /* another round */
	CONVERGE_STOP,     /* pause, copy the rest, resume there */
	CONVERGE_POSTCOPY, /* pause, resume there, pull the rest */
	CONVERGE_STALLED,  /* another round, but it will not help: throttle or tell people */
};

/* ret_downtime_us: predicted for stopping now; 0 while no bandwidth is known. */
enum converge_verdict converge_decide(struct converge *c, const struct converge_input *in,
				      uint64_t *ret_downtime_us);

#endif
