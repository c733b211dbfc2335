/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What a peer that has the key may put into records of a sealed lane.  The input is the peer's story: records, and what we
 * post meanwhile.  The lane below is played here: whatever is sent arrives, and what the peer says is received.
 *
 *   byte 0  1 post a write, 2 a read, 3 a flush; else a record, whose head follows:
 *           bit 7: with the right key; bit 6: with the right length; bit 5: acknowledges what we sent
 *   48 bytes of head, one byte of body (in 32 bytes)
 *
 * One that begins with 0xff is the peer's Hello instead, and nothing follows; bit 0 of byte 1 has our sends meet a full queue
 * every other time.
 */
#include <endian.h>
#include <errno.h>

#include "base/cleanup.h"
#include "fuzz.h"
#include "transport/sealed/sealed_priv.h"

#define MEMORY 4096u
#define DEPTH  4u

static struct {
	struct tp_domain domain;
	struct tp_lane lane;
	struct tp_xfer receive[SEALED_RECEIVES];
	uint32_t first, n;
	struct tp_wc wc[256];
	uint32_t first_wc, n_wc;
	bool is_down;
	/* the peer */
	struct sealed_hello ours, theirs; /* its own is `theirs` */
	struct seal *out, *in;
	unsigned heard;
	const uint8_t *hello; /* the peer's own words; NULL: a right one */
	size_t hello_len;
	bool is_narrow; /* every other send meets a full queue */
	unsigned tries;
} fake;

static const struct tp_seal seal = { TP_SEAL_ENCRYPT, { 4, 2 } };

static void complete(uint64_t cookie, bool received, uint32_t len, int status)
{
	assert(fake.n_wc < BASE_ARRAY_LEN(fake.wc));
	fake.wc[(fake.first_wc + fake.n_wc++) % BASE_ARRAY_LEN(fake.wc)] = (struct tp_wc){
		.cookie = cookie, .status = status, .received = received, .len = len
	};
}

/* False: the lane has no receive, as it has failed. */
static bool say(const void *bytes, uint32_t len)
{
	if (!fake.n || fake.is_down)
		return false;
	const struct tp_xfer *to = &fake.receive[fake.first];
	assert(len <= to->len);
	memcpy(to->local, bytes, len);
	complete(to->cookie, true, len, 0);
	fake.first = (fake.first + 1) % SEALED_RECEIVES;
	fake.n--;
	return true;
}

static bool say_record(const struct sealed_head *head, const uint8_t *body, size_t len)
{
	static uint8_t record[SEALED_RECORD_MAX];
	assert(seal_close(fake.out, head, sizeof(*head), body, len, record) == 0);
	return say(record, (uint32_t)(sizeof(*head) + len + SEAL_TAG_SIZE));
}

static struct seal *key_of(uint8_t from_connector)
{
	struct {
		struct sealed_hello connector, acceptor;
		uint8_t lane_id[4], from_connector;
	} said = { fake.ours, fake.theirs, { 0 }, from_connector };
	struct seal *ret;
	assert(seal_create(&seal, &said, sizeof(said.connector) * 2 + 5, &ret) == 0);
	return ret;
}

static void hear(const uint8_t *bytes, size_t len)
{
	static uint8_t record[SEALED_RECORD_MAX];
	if (!fake.heard++) {
		assert(len == sizeof(fake.ours));
		memcpy(&fake.ours, bytes, len);
		if (fake.hello) {
			(void)say(fake.hello, (uint32_t)fake.hello_len);
			return;
		}
		fake.theirs = fake.ours;
		fake.theirs.depth = htole32(DEPTH);
		fake.in = key_of(1);
		fake.out = key_of(0);
		(void)say(&fake.theirs, sizeof(fake.theirs));
		return;
	}
	if (!fake.in)
		return; /* we have taken its Hello; nobody could open this */
	/* All that is sent is whole. */
	assert(len <= sizeof(record));
	memcpy(record, bytes, len);
	assert(seal_open(fake.in, record, len) == 0);
	if (fake.heard == 2)
		(void)say_record(&(struct sealed_head){ .kind = SEALED_ACK }, NULL, 0);
}

static int post_send(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n)
{
	(void)lane;
	if (fake.is_down)
		return -ECANCELED;
	if (fake.is_narrow && fake.tries++ % 2 == 0)
		return -EAGAIN;
	for (unsigned i = 0; i < n; i++) {
		complete(xfer[i].cookie, false, 0, 0);
		hear(xfer[i].local, xfer[i].len);
	}
	return (int)n;
}

static int post_receive(struct tp_lane *lane, const struct tp_xfer *xfer, unsigned n)
{
	(void)lane;
	assert(n == 1 && fake.n < SEALED_RECEIVES);
	fake.receive[(fake.first + fake.n++) % SEALED_RECEIVES] = *xfer;
	return 1;
}

static int lane_poll(struct tp_lane *lane, struct tp_wc *wc, unsigned n)
{
	unsigned got = 0;
	(void)lane;
	for (; got < n && fake.n_wc; fake.n_wc--) {
		wc[got++] = fake.wc[fake.first_wc];
		fake.first_wc = (fake.first_wc + 1) % BASE_ARRAY_LEN(fake.wc);
	}
	return got || !fake.is_down ? (int)got : -ECANCELED;
}

static int lane_wait(struct tp_lane *lane, uint64_t deadline_us)
{
	(void)lane, (void)deadline_us;
	return fake.n_wc || fake.is_down ? 0 : -ETIMEDOUT;
}

static void lane_shutdown(struct tp_lane *lane)
{
	(void)lane;
	fake.is_down = true;
	for (; fake.n; fake.n--) {
		complete(fake.receive[fake.first].cookie, true, 0, -ECANCELED);
		fake.first = (fake.first + 1) % SEALED_RECEIVES;
	}
}

static void lane_close(struct tp_lane *lane)
{
	(void)lane;
	assert(fake.is_down && !fake.n_wc && !fake.n);
}

static int domain_open(const struct tp_ops *ops, const struct tp_domain_params *params,
		       struct tp_domain **ret, struct mf_error *err)
{
	(void)params, (void)err;
	fake.domain.ops = ops;
	*ret = &fake.domain;
	return 0;
}

static void domain_close(struct tp_domain *domain)
{
	(void)domain;
}

static void domain_limits(const struct tp_domain *domain, struct tp_limits *ret)
{
	(void)domain;
	*ret = (struct tp_limits){ .depth = 64, .max_op = 1 << 30 };
}

static int mr_reg(struct tp_domain *domain, void *addr, uint64_t len, uint32_t access,
		  struct tp_mr **ret, struct mf_error *err)
{
	static struct tp_mr mr;
	(void)err;
	mr = (struct tp_mr){ domain, addr, len, access };
	*ret = &mr;
	return 0;
}

static void mr_dereg(struct tp_mr *mr)
{
	(void)mr;
}

static int connect_lane(struct tp_domain *domain, const char *addr, const uint8_t *token,
			uint32_t id, uint64_t deadline_us, struct tp_lane **ret,
			struct mf_error *err)
{
	(void)addr, (void)token, (void)deadline_us, (void)err;
	fake.lane = (struct tp_lane){ domain, id };
	*ret = &fake.lane;
	return 0;
}

static const struct tp_ops below = {
	.name = "fake",
	.kind = "tcp",
	.domain_open = domain_open,
	.domain_close = domain_close,
	.domain_limits = domain_limits,
	.mr_reg = mr_reg,
	.mr_dereg = mr_dereg,
	.connect = connect_lane,
	.lane_shutdown = lane_shutdown,
	.lane_close = lane_close,
	.post_send = post_send,
	.post_receive = post_receive,
	.lane_poll = lane_poll,
	.lane_wait = lane_wait,
};

struct story {
	const uint8_t *data;
	size_t size;
	struct tp_lane *lane;
	struct tp_mr *local, *lent;
	uint8_t *memory;
	unsigned posted, done;
};

static size_t take(struct story *s, void *to, size_t n)
{
	n = n < s->size ? n : s->size;
	memcpy(to, s->data, n);
	s->data += n;
	s->size -= n;
	return n;
}

static void post(struct story *s, uint8_t what)
{
	const struct tp_xfer x = {
		.local = s->memory, .mr = s->local, .len = MEMORY, .cookie = s->posted
	};
	int r = what == 1   ? tp_post_write(s->lane, &x, 1)
		: what == 2 ? tp_post_read(s->lane, &x, 1)
			    : tp_post_flush(s->lane, s->posted);
	s->posted += r == 1 || (what == 3 && r == 0);
}

static bool speak(struct story *s, uint8_t how)
{
	static uint8_t body[SEALED_BODY];
	struct sealed_head head = { 0 };
	struct tp_remote remote;
	uint8_t size = 0;
	(void)take(s, &head, sizeof(head));
	(void)take(s, &size, 1);
	tp_mr_remote(s->lent, &remote);
	if (how & 0x80)
		head.key = htole64(remote.key);
	if (how & 0x40)
		head.len = htole32(size * 32u);
	if (how & 0x20)
		head.acked = htole64(BASE_CONTAINER_OF(s->lane, struct sealed_lane, base)->sent);
	return say_record(&head, body, size * 32u);
}

static void poll_all(struct story *s)
{
	struct tp_wc wc[8];
	int n;
	while ((n = tp_lane_poll(s->lane, wc, 8)) > 0) {
		for (int i = 0; i < n; i++)
			assert(wc[i].cookie < s->posted && wc[i].status <= 0);
		s->done += (unsigned)n;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct tp_domain_params params = { .depth = DEPTH, .seal = &seal };
	static const uint8_t token[TP_TOKEN_SIZE];
	struct tp_sealed_table table;
	struct tp_domain *domain;
	struct mf_error err = { 0 };
	struct story s = { .data = data, .size = size };
	uint8_t what;

	memset(&fake, 0, sizeof(fake));
	tp_sealed_init(&table, &below);
	assert(tp_domain_open(&table.ops, &params, &domain, &err) == 0);
	/* Of their own, so that a sanitizer sees what is reached beyond. */
	uint8_t *lent = calloc(1, MEMORY);
	s.memory = calloc(1, MEMORY);
	assert(lent && s.memory);
	assert(tp_mr_reg(domain, s.memory, MEMORY, TP_LOCAL, &s.local, &err) == 0);
	assert(tp_mr_reg(domain, lent, MEMORY, TP_REMOTE_WRITE | TP_REMOTE_READ, &s.lent, &err) ==
	       0);
	fake.is_narrow = size > 1 && data[1] & 1;
	if (size && data[0] == 0xff) {
		fake.hello = data + 1;
		fake.hello_len = size - 1 < SEALED_RECORD_MAX ? size - 1 : SEALED_RECORD_MAX;
	}
	int r = tp_connect(domain, "", token, 0, 1, &s.lane, &err);
	assert(fake.hello ? r < 0 : r == 0);
	if (r < 0) {
		fuzz_check_error(&err, r);
		s.size = 0;
	}
	while (take(&s, &what, 1) == 1) {
		if (what >= 1 && what <= 3)
			post(&s, what);
		else if (!speak(&s, what))
			break;
		poll_all(&s);
	}
	if (s.lane) {
		tp_lane_shutdown(s.lane);
		poll_all(&s);
		assert(s.done == s.posted); /* T3, whatever the peer does */
		tp_lane_close(s.lane);
	}
	tp_mr_dereg(s.local);
	tp_mr_dereg(s.lent);
	tp_domain_close(domain);
	seal_free(fake.in);
	seal_free(fake.out);
	free(s.memory);
	free(lent);
	return 0;
}
