/* SPDX-License-Identifier: BSD-2-Clause */
/* What the files of the transport's conformance suite share; conf_transport.c tells about it, and has T1 to T9. */
#ifndef CONF_TRANSPORT_H
#define CONF_TRANSPORT_H

#include "tests/conformance/tp_rig.h"

#define KIB      1024u
#define MIB      (1024u * KIB)
#define BOTH     (TP_REMOTE_WRITE | TP_REMOTE_READ)
#define PATIENCE base_deadline_ms(RIG_PATIENCE_MS)

/* The transport that is tested, and what the running test has opened with it. */
extern const struct tp_ops *ops;
extern struct rig rig;
extern struct ledger ledger;

void open_rig(uint32_t depth, unsigned n_lanes, uint64_t bytes, uint32_t far_access);
/* What is under TCP is a socket that anybody can open; what is not, is not. */
bool is_tcp(void);
uint32_t depth_of(struct tp_domain *domain);
void fill(uint8_t *mem, uint64_t len, uint64_t seed);
void assert_filled(const uint8_t *mem, uint64_t len, uint64_t seed);
void assert_zero(const uint8_t *mem, uint64_t len);
/* The operation fails, and the lane with it; a new lane takes its place. */
void expect_denied(struct tp_xfer x,
		   int (*post)(struct tp_lane *, const struct tp_xfer *, unsigned));

/* conf_transport_connect.c */
void t10_a_wrong_token_is_refused(void **state);
void t10_a_wrong_token_never_becomes_a_lane(void **state);
void t10_strangers_do_not_hinder(void **state);
void t11_accept_returns_by_its_deadline(void **state);
void t11_a_silent_peer_is_an_error(void **state);
void t11_a_closing_peer_is_an_error(void **state);
void t11_a_refused_port_is_named(void **state);
void t11_a_port_in_use_is_named(void **state);
void t12_a_killed_peer_fails_what_is_outstanding(void **state);
void t12_a_killed_peer_fails_an_idle_lane(void **state);
void t12_a_killed_peer_shows_to_a_poller(void **state);
void t12_reads_broken_in_the_middle_complete_once(void **state);

/* conf_transport_lend.c */
void t13_lent_memory_is_reachable_on_its_lane_with_its_right(void **state);
void t13_what_was_revoked_stays_as_it_is(void **state);
void t13_our_own_operations_go_on(void **state);
void t13_many_are_lent_and_revoked_at_once(void **state);

/* conf_transport_messages.c */
void t14_messages_come_whole_and_in_order(void **state);
void t14_messages_keep_their_place_among_writes(void **state);
void t14_receives_are_bounded_and_complete_once(void **state);
void t14_a_message_too_long_fails_the_lane(void **state);

#endif
