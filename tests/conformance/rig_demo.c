/* SPDX-License-Identifier: BSD-2-Clause */
#include "rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <memferry/guests.h>

#include "hv-adapters/process/process.h"

static const char spec[] = "demo:4M,dirty=32M,regions=2,zero=20";

static bool open_both(struct rig *rig)
{
	for (unsigned side = MF_SOURCE; side <= MF_DESTINATION; side++) {
		struct mf_error err = { 0 };
		if (mf_guest_open(spec, side, &rig->guest[side], &err)) {
			print_error("%s\n", err.msg);
			return false;
		}
	}
	return true;
}

static void close_both(struct rig *rig)
{
	for (unsigned side = MF_SOURCE; side <= MF_DESTINATION; side++)
		mf_guest_close(&rig->guest[side]);
}

static struct hv_process_status ask(struct rig *rig, enum mf_side side)
{
	struct hv_process_status status = { 0 };
	struct mf_error err = { 0 };
	if (hv_process_status(rig->guest[side].hv, &status, &err))
		fail_msg("%s", err.msg);
	return status;
}

static bool running(struct rig *rig, enum mf_side side)
{
	struct hv_process_status status = ask(rig, side);
	assert_int_equal(status.wrong_pages, 0);
	return status.running;
}

static uint64_t life(struct rig *rig, enum mf_side side)
{
	return ask(rig, side).heartbeat;
}

static bool ended(struct rig *rig, enum mf_side side)
{
	struct hv_process_status status;
	return hv_process_status(rig->guest[side].hv, &status, NULL) < 0;
}

const struct rig_ops rig_demo = {
	.open = open_both,
	.close = close_both,
	.running = running,
	.life = life,
	.ended = ended,
};
