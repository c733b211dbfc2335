/* SPDX-License-Identifier: BSD-2-Clause */
/* The registry of trackers, and the only callers of their tables. */
#include "tracker/tracker.h"

#include <assert.h>
#include <string.h>

#include "base/error.h"

extern const struct trk_ops trk_kvmring_ops;
extern const struct trk_ops trk_kvmlog_ops;
extern const struct trk_ops trk_pagemap_ops;
extern const struct trk_ops trk_softdirty_ops;
extern const struct trk_ops trk_writeprotect_ops;

static const struct trk_ops *const backends[] = {
	&trk_kvmring_ops,   &trk_kvmlog_ops,       &trk_pagemap_ops,
	&trk_softdirty_ops, &trk_writeprotect_ops, NULL,
};

const struct trk_ops *const *trk_backends(void)
{
	return backends;
}

const struct trk_ops *trk_find(const char *name)
{
	for (size_t i = 0; backends[i]; i++) {
		if (!strcmp(backends[i]->name, name))
			return backends[i];
	}
	return NULL;
}

int trk_probe(const struct trk_ops *ops, const struct trk_params *params, struct mf_error *err)
{
	if (ops->caps & TRK_CAP_NEEDS_KVM && (!params || !params->kvm))
		return base_error(err, -MF_EKERNEL, MF_SCOPE_SESSION,
				  "%s is for guests on KVM in this process", ops->name);
	return ops->probe(params, err);
}

int trk_open(const struct trk_ops *ops, const struct trk_params *params, struct trk **ret_trk,
	     struct mf_error *err)
{
	assert(params->n_ranges > 0 && params->pid >= 0);
	assert(!(ops->caps & TRK_CAP_NEEDS_UFFD) || params->uffd >= 0);
	assert(!(ops->caps & TRK_CAP_NEEDS_KVM) || params->kvm);
	for (uint32_t i = 0; i < params->n_ranges; i++) {
		const struct trk_range *r = &params->ranges[i];
		uint64_t size = r->page_size;
		assert(size && !(size & (size - 1)));
		assert(r->len && r->addr % size == 0 && r->len % size == 0);
	}
	return ops->open(params, ret_trk, err);
}

int trk_start(struct trk *trk, struct mf_error *err)
{
	return trk->ops->start(trk, err);
}

int trk_collect(struct trk *trk, uint32_t range, uint64_t first, uint64_t n, uint64_t *bits,
		uint64_t *ret_pages, struct mf_error *err)
{
	return trk->ops->collect(trk, range, first, n, bits, ret_pages, err);
}

int trk_clear(struct trk *trk, uint32_t range, uint64_t first, uint64_t n)
{
	return trk->ops->clear ? trk->ops->clear(trk, range, first, n) : 0;
}

void trk_stop(struct trk *trk)
{
	trk->ops->stop(trk);
}

void trk_close(struct trk *trk)
{
	if (!trk)
		return;
	trk->ops->stop(trk);
	trk->ops->close(trk);
}
