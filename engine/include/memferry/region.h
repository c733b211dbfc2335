/* SPDX-License-Identifier: BSD-2-Clause */
/**
 * @file region.h
 * A region of guest RAM, as an adapter describes it to the engine.
 */
#ifndef MF_REGION_H
#define MF_REGION_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MF_REGION_NAME_MAX 64
/** Regions of one guest; a guest with more is refused. */
#define MF_REGIONS_MAX 64

/**
 * One contiguous piece of guest RAM with one backing and one page size.  Both
 * hosts' regions are matched by name and size; gpa must agree too.
 *
 * With a file the engine maps it once more and never touches hva itself, but for emptying that
 * mapping at a destination.  Without one the guest must live in this process: shared memory
 * is mapped once more all the same (so it must be one mapping), private memory is read
 * and written where it is, and what is pulled into it is copied once.
 */
struct mf_region {
	char name[MF_REGION_NAME_MAX]; /**< unique within the guest */
	uint64_t size;                 /**< bytes, a multiple of page_size */
	uint64_t page_size; /**< bytes of one backing page: the unit of tracking and paging */
	uint64_t gpa;       /**< guest-physical address of its first byte */
	uint64_t hva;       /**< its address in the monitor's address space */
	int fd; /**< the shared file behind it; -1: none is known, hva is in this process */
	uint64_t offset; /**< of the region in that file, bytes */
};

#ifdef __cplusplus
}
#endif
#endif
