/* SPDX-License-Identifier: BSD-2-Clause */
#include "perf/doc.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"

void perf_put(json_t *object, const char *key, json_t *value)
{
	(void)json_object_set_new(object, key, value);
}

json_t *perf_doc_new(const char *test, json_t *options)
{
	json_t *doc = json_object();
	time_t now = time(NULL);
	char text[32] = "";
	struct tm tm;

	if (gmtime_r(&now, &tm))
		(void)strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &tm);
	perf_put(doc, "schema", json_string(PERF_SCHEMA));
	perf_put(doc, "test", json_string(test));
	perf_put(doc, "time", json_string(text));
	perf_put(doc, "options", options);
	perf_put(doc, "hosts", json_array());
	perf_put(doc, "results", json_array());
	return doc;
}

void perf_doc_add_host(json_t *doc, json_t *facts)
{
	(void)json_array_append_new(json_object_get(doc, "hosts"), facts);
}

void perf_doc_add(json_t *doc, json_t *row)
{
	(void)json_array_append_new(perf_doc_rows(doc), row);
}

json_t *perf_doc_rows(const json_t *doc)
{
	return json_object_get(doc, "results");
}

const json_t *perf_get(const json_t *object, const char *path)
{
	while (object) {
		size_t len = strcspn(path, ".");
		char key[64];

		if (len >= sizeof(key))
			return NULL;
		(void)snprintf(key, sizeof(key), "%.*s", (int)len, path);
		object = json_object_get(object, key);
		if (!path[len])
			return object;
		path += len + 1;
	}
	return NULL;
}

double perf_number(const json_t *object, const char *path)
{
	return json_number_value(perf_get(object, path)); /* 0.0 for all else */
}

const char *perf_text(const json_t *object, const char *path)
{
	const char *text = json_string_value(perf_get(object, path));

	return text ? text : "";
}

static int write_failed(const char *path, struct mf_error *err)
{
	return base_error_sys(err, errno ? -errno : -EIO, MF_SCOPE_HOST, "cannot write %.200s",
			      path);
}

int perf_doc_write(const json_t *doc, const char *path, struct mf_error *err)
{
	const size_t flags = JSON_INDENT(1) | JSON_REAL_PRECISION(9);
	char other[4096];

	errno = 0;
	if (!strcmp(path, "-")) {
		bool failed = json_dumpf(doc, stdout, flags) || fputc('\n', stdout) == EOF ||
			      fflush(stdout);
		return failed ? write_failed("standard output", err) : 0;
	}
	/* Beside it first, so that what a reader finds is whole. */
	if ((size_t)snprintf(other, sizeof(other), "%s.new", path) >= sizeof(other))
		return base_error(err, -ENAMETOOLONG, MF_SCOPE_HOST,
				  "a name of a file is too long");
	if (json_dump_file(doc, other, flags) || rename(other, path)) {
		int ret = write_failed(path, err);
		(void)unlink(other);
		return ret;
	}
	return 0;
}
