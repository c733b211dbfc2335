/* SPDX-License-Identifier: BSD-2-Clause */
#include "hv-adapters/process/writers.h"

#include <errno.h>
#include <time.h>

#include "base/bitmap.h"
#include "base/clock.h"

enum {
	SLICE_US = 1000,       /* a writer looks at the clock anew after so long */
	BATCH_US = 2000,       /* it sleeps for at least so long: waking costs more than a page */
	NAP_US = 10000,        /* and wakes for a heartbeat after so long */
	WINDOW_US = 10000,     /* throttling: asleep for the last part of each */
	CREDIT_MAX_US = 50000, /* a guest that could not run does not catch up for longer */
};

static uint64_t get(const _Atomic uint64_t *value)
{
	return atomic_load_explicit(value, memory_order_relaxed);
}

/* Only the owner adds, so that a plain load and store do. */
static void add(_Atomic uint64_t *value, uint64_t n)
{
	atomic_store_explicit(value, get(value) + n, memory_order_relaxed);
}

static bool ordered(const struct writer *w, enum order order)
{
	return atomic_load_explicit(&w->crew->order, memory_order_relaxed) == order;
}

static unsigned char *page_at(const struct crew *crew, uint64_t page)
{
	uint64_t each = crew->plan.pages / crew->opt.regions;
	return crew->ram[page / each] + page % each * STAMP_PAGE;
}

static uint64_t share_size(const struct share *share)
{
	return share->hot_n + share->cold_n;
}

/* A page counts once, however often it is found wrong; a bit is one writer's alone. */
static void note_wrong(struct writer *w, uint64_t page)
{
	if (bitmap_test_atomic(w->crew->bad, page))
		return;
	bitmap_set_atomic(w->crew->bad, page, 1);
	add(&w->wrong, 1);
}

static void check_item(struct writer *w, uint64_t i)
{
	const struct plan *plan = &w->crew->plan;
	uint64_t page = share_page(&w->share, i), generation = 0;

	if (i < w->share.hot_n)
		generation = plan_generation(plan, w->index, w->share.hot_n, i, get(&w->steps));
	if (!page_check(page_at(w->crew, page), plan, w->index, page, generation))
		note_wrong(w, page);
}

/* The next of the endless walks over all pages. */
static void check_next(struct writer *w)
{
	uint64_t scan = get(&w->scan);
	check_item(w, scan);
	if (++scan == share_size(&w->share)) {
		scan = 0;
		add(&w->passes, 1);
	}
	atomic_store_explicit(&w->scan, scan, memory_order_relaxed);
}

/* One step of the guest: one page, checked and rewritten. */
static void step(struct writer *w)
{
	const struct plan *plan = &w->crew->plan;
	uint64_t now = get(&w->steps);
	uint64_t page = w->share.hot_first + plan_target(plan, w->index, w->share.hot_n, now);
	uint64_t generation = plan_generation_before(w->share.hot_n, now);
	unsigned char *at = page_at(w->crew, page);

	if (!page_check(at, plan, w->index, page, generation))
		note_wrong(w, page);
	page_stamp(at, plan, w->index, page, generation + 1);
	add(&w->steps, 1);
}

static void fill(struct writer *w)
{
	for (uint64_t i = 0; i < share_size(&w->share); i++) {
		uint64_t page = share_page(&w->share, i);
		if (!page_starts_zero(&w->crew->plan, page))
			page_stamp(page_at(w->crew, page), &w->crew->plan, w->index, page, 0);
	}
}

static void verify(struct writer *w)
{
	for (uint64_t i = 0; i < share_size(&w->share) && ordered(w, ORDER_VERIFY); i++) {
		check_item(w, i);
		atomic_fetch_add_explicit(&w->crew->verified, 1, memory_order_relaxed);
	}
}

static void wait_until(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t deadline_us)
{
	struct timespec at = {
		.tv_sec = (time_t)(deadline_us / 1000000u),
		.tv_nsec = (long)(deadline_us % 1000000u) * 1000,
	};
	(void)pthread_cond_timedwait(cond, lock, &at);
}

/* Until then, or another order. */
static void nap(struct writer *w, uint64_t until_us)
{
	pthread_mutex_lock(&w->crew->lock);
	if (ordered(w, ORDER_RUN))
		wait_until(&w->crew->changed, &w->crew->lock, until_us);
	pthread_mutex_unlock(&w->crew->lock);
}

/* What a writer may do, in bytes × µs/s: time that passed times its rate. */
struct credit {
	uint64_t rate; /* bytes a second, of all writers */
	uint64_t have;
	uint64_t cost; /* of one page for one of the writers */
};

static struct credit credit_of(const struct crew *crew, uint64_t rate)
{
	return (struct credit){
		.rate = rate,
		.cost = (uint64_t)STAMP_PAGE * 1000000u * crew->opt.threads,
	};
}

static void credit_earn(struct credit *c, uint64_t us)
{
	uint64_t most = c->rate * CREDIT_MAX_US + c->cost;
	c->have += c->rate * us;
	if (c->have > most)
		c->have = most;
}

/* How long until there is enough for a page. */
static uint64_t credit_due_us(const struct credit *c)
{
	if (c->have >= c->cost)
		return 0;
	return c->rate ? (c->cost - c->have) / c->rate + 1 : UINT64_MAX;
}

static void spend(struct writer *w, struct credit *c, uint64_t until_us,
		  void (*page)(struct writer *))
{
	while (c->have >= c->cost && ordered(w, ORDER_RUN) && base_now_us() < until_us) {
		page(w);
		c->have -= c->cost;
	}
}

static void run(struct writer *w)
{
	struct credit writes = credit_of(w->crew, w->crew->opt.dirty);
	struct credit checks = credit_of(w->crew, w->crew->opt.check);
	uint64_t last = base_now_us();

	while (ordered(w, ORDER_RUN)) {
		uint32_t percent = atomic_load_explicit(&w->crew->throttle, memory_order_relaxed);
		uint64_t now = base_now_us(), passed = now - last;
		uint64_t awake = WINDOW_US * (100 - percent) / 100, phase = now % WINDOW_US;

		last = now;
		add(&w->heartbeat, 1);
		/* A throttled guest's clock goes slower too, or it would catch up in its waking time. */
		passed = (passed < CREDIT_MAX_US ? passed : CREDIT_MAX_US) * (100 - percent) / 100;
		credit_earn(&writes, passed);
		credit_earn(&checks, passed);
		if (phase >= awake) {
			nap(w, now + WINDOW_US - phase);
			continue;
		}
		spend(w, &writes, now + SLICE_US, step);
		spend(w, &checks, now + 2 * SLICE_US, check_next);

		uint64_t due = credit_due_us(&writes), due_checks = credit_due_us(&checks);
		if (due_checks < due)
			due = due_checks;
		if (due) /* a few pages a waking, not one */
			nap(w, base_now_us() + (due < BATCH_US ? BATCH_US
						: due < NAP_US ? due
							       : NAP_US));
	}
}

/* With the lock. */
static bool has_work(const struct writer *w)
{
	switch (atomic_load_explicit(&w->crew->order, memory_order_relaxed)) {
	case ORDER_RUN:
		return true;
	case ORDER_FILL:
	case ORDER_VERIFY:
		return w->done != w->crew->orders;
	case ORDER_HOLD:
		break;
	}
	return false;
}

static void work(struct writer *w, enum order order)
{
	if (order == ORDER_RUN)
		run(w);
	else if (order == ORDER_FILL)
		fill(w);
	else
		verify(w);
}

static void *writer_main(void *arg)
{
	struct writer *w = arg;
	struct crew *crew = w->crew;

	pthread_mutex_lock(&crew->lock);
	for (;;) {
		while (!has_work(w))
			pthread_cond_wait(&crew->changed, &crew->lock);
		enum order order = atomic_load_explicit(&crew->order, memory_order_relaxed);
		uint64_t number = crew->orders;
		crew->busy++;
		pthread_mutex_unlock(&crew->lock);

		work(w, order);

		pthread_mutex_lock(&crew->lock);
		if (order != ORDER_RUN && number == crew->orders) {
			w->done = number;
			crew->left--;
		}
		if (!--crew->busy) {
			crew->stopped_us = base_now_us();
			pthread_cond_signal(&crew->idle);
		}
	}
	return NULL;
}

int crew_start(struct crew *crew)
{
	pthread_condattr_t attr;
	int rc = pthread_condattr_init(&attr);
	if (!rc)
		rc = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	if (!rc)
		rc = pthread_mutex_init(&crew->lock, NULL);
	if (!rc)
		rc = pthread_cond_init(&crew->changed, &attr);
	if (!rc)
		rc = pthread_cond_init(&crew->idle, &attr);
	for (uint32_t i = 0; !rc && i < crew->opt.threads; i++) {
		struct writer *w = &crew->writers[i];
		w->crew = crew;
		w->index = i;
		plan_share(&crew->plan, i, &w->share);
		rc = pthread_create(&w->thread, NULL, writer_main, w);
	}
	return -rc;
}

void crew_order(struct crew *crew, enum order order)
{
	pthread_mutex_lock(&crew->lock);
	atomic_store_explicit(&crew->order, order, memory_order_relaxed);
	crew->orders++;
	crew->left = order == ORDER_FILL || order == ORDER_VERIFY ? crew->opt.threads : 0;
	pthread_cond_broadcast(&crew->changed);
	pthread_mutex_unlock(&crew->lock);
}

bool crew_wait(struct crew *crew, uint64_t deadline_us)
{
	pthread_mutex_lock(&crew->lock);
	while ((crew->busy || crew->left) && base_now_us() < deadline_us)
		wait_until(&crew->idle, &crew->lock, deadline_us);
	bool idle = !crew->busy && !crew->left;
	pthread_mutex_unlock(&crew->lock);
	return idle;
}
