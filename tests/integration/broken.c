/* SPDX-License-Identifier: BSD-2-Clause */
/* broken KIND: its child does what a sanitizer finds; neither its own exit status nor anybody's output tells. */
#include <assert.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile int number = INT_MAX;

static void *add(void *arg)
{
	number += *(int *)arg;
	return NULL;
}

static void race(void)
{
	pthread_t thread;
	int zero = 0;
	if (pthread_create(&thread, NULL, add, &zero))
		abort();
	number = 1;
	(void)pthread_join(thread, NULL);
}

static void use_freed(void)
{
	volatile char *volatile bytes = malloc(8);
	free((void *)bytes);
	bytes[0] = 1;
}

static void leak(void)
{
	void *volatile bytes = malloc(8);
	bytes = NULL;
	(void)bytes;
}

static void err(const char *kind)
{
	int one = 1;
	if (!strcmp(kind, "race"))
		race();
	else if (!strcmp(kind, "freed"))
		use_freed();
	else if (!strcmp(kind, "leak"))
		leak();
	else if (!strcmp(kind, "overflow"))
		(void)add(&one);
	else
		assert(!"what is asserted holds");
}

int main(int argc, char **argv)
{
	int status;
	if (argc != 2)
		return 2;
	pid_t child = fork();
	if (child == 0) {
		(void)close(STDOUT_FILENO);
		(void)close(STDERR_FILENO);
		err(argv[1]);
		exit(0);
	}
	return child < 0 || waitpid(child, &status, 0) != child;
}
