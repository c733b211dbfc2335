/* SPDX-License-Identifier: BSD-2-Clause */
/* devices: what pages could move over here, what auto picks, and why. */
#include <stdio.h>

#include <memferry/session.h>

#include "base/cleanup.h"
#include "report.h"
#include "verbs.h"

#define DEVICES_MAX 64

static void print_device(const struct mf_device *device)
{
	char transport[32], name[128], detail[400], reason[256];
	const char *state = device->picked ? "picked" : device->usable ? "usable" : "no";

	printf("%-9s %-16s %-7s %s%s%s\n",
	       cli_clean(device->transport, transport, sizeof(transport)),
	       cli_clean(device->name, name, sizeof(name)), state,
	       cli_clean(device->detail, detail, sizeof(detail)),
	       device->detail[0] && device->reason[0] ? "; " : "",
	       cli_clean(device->reason, reason, sizeof(reason)));
}

int cli_verb_devices(const struct cli_options *o)
{
	struct mf_device devices[DEVICES_MAX];
	struct mf_error err = { 0 };

	int n = mf_devices(devices, sizeof(devices[0]), BASE_ARRAY_LEN(devices), &err);
	if (n < 0)
		return cli_fail(o, &err);
	n = n < DEVICES_MAX ? n : DEVICES_MAX;
	if (!o->json)
		puts(n ? "TRANSPORT NAME             USE     WHAT AND WHY"
		       : "no device here can carry pages");
	for (int i = 0; i < n; i++) {
		if (o->json)
			cli_json_print(stdout, cli_json_device(&devices[i]));
		else
			print_device(&devices[i]);
	}
	return 0;
}
