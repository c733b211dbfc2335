/* SPDX-License-Identifier: BSD-2-Clause */
/* What addresses make fi_getinfo() say. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "transport/fabric/fabric_priv.h"

static int copy_addr(const struct sockaddr *sa, void **ret_copy, size_t *ret_len)
{
	*ret_len = sa->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6)
					     : sizeof(struct sockaddr_in);
	*ret_copy = malloc(*ret_len);
	if (!*ret_copy)
		return -ENOMEM;
	memcpy(*ret_copy, sa, *ret_len);
	return 0;
}

/* The first that is the plain tcp provider: "tcp;ofi_rxm" and the like are other protocols. */
static struct fi_info *find_plain_tcp(struct fi_info *list)
{
	while (list && strcmp(list->fabric_attr->prov_name, "tcp"))
		list = list->next;
	return list;
}

int tp_fabric_getinfo(const struct sockaddr *src, const struct sockaddr *dst,
		      struct fi_info **ret_info, struct mf_error *err)
{
	struct fi_info *list = NULL;
	struct fi_info *hints = fi_allocinfo();
	if (!hints)
		return base_error_sys(err, -ENOMEM, MF_SCOPE_HOST, "libfabric");

	int ret = -ENOMEM;
	hints->fabric_attr->prov_name = strdup("tcp");
	if (!hints->fabric_attr->prov_name)
		goto out;
	hints->caps = FI_MSG | FI_RMA | FI_READ | FI_WRITE | FI_REMOTE_READ | FI_REMOTE_WRITE;
	hints->ep_attr->type = FI_EP_MSG;
	hints->domain_attr->threading = FI_THREAD_SAFE;
	hints->domain_attr->control_progress = FI_PROGRESS_MANUAL;
	hints->domain_attr->data_progress = FI_PROGRESS_MANUAL;
	/* What we can live with.  Keys are ours in any case: one must open all lanes. */
	hints->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED;
	hints->addr_format = FI_SOCKADDR;
	if (src && src->sa_family != AF_UNSPEC &&
	    copy_addr(src, &hints->src_addr, &hints->src_addrlen))
		goto out;
	if (dst && copy_addr(dst, &hints->dest_addr, &hints->dest_addrlen))
		goto out;

	ret = fi_getinfo(FAB_VERSION, NULL, NULL, 0, hints, &list);
	if (ret) {
		ret = tp_fabric_error(err, ret, MF_SCOPE_HOST,
				      "libfabric: has no tcp provider for this address; check "
				      "FI_PROVIDER and the version (1.17 or newer)");
		goto out;
	}
	struct fi_info *found = find_plain_tcp(list);
	*ret_info = found ? fi_dupinfo(found) : NULL;
	if (!*ret_info)
		ret = base_error(err, found ? -ENOMEM : -ENODATA, MF_SCOPE_HOST,
				 "libfabric: has no plain tcp provider here");
out:
	fi_freeinfo(list);
	fi_freeinfo(hints);
	return ret == -ENOMEM ? base_error_sys(err, ret, MF_SCOPE_HOST, "libfabric") : ret;
}
