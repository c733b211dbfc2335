/* SPDX-License-Identifier: BSD-2-Clause */
/* What the destination's files share: destination.c runs its phases, recover.c comes back to some of them. */
#ifndef CORE_DESTINATION_H
#define CORE_DESTINATION_H

#include "core/engine.h"

/* destination.c */

/* Where the source finds us; said once. */
int eng_destination_listen(struct mf_session *s, struct mf_error *err);
/* The answer to Describe: with our findings, if they are wanted. */
int eng_destination_send_verdicts(struct mf_session *s, bool findings, struct mf_error *err);
/* Opens what Prepare asks for; the rest of it is between rails. */
int eng_destination_take_prepare(struct mf_session *s, uint32_t *ret_bulk, struct mf_error *err);

#endif
