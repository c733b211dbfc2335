/* SPDX-License-Identifier: BSD-2-Clause */
/* The bare guest's image, in the programs that run it. */
	.section .rodata
	.globl guest_image, guest_image_end
	.balign 16
guest_image:
	.incbin GUEST_IMAGE
guest_image_end:
	.section .note.GNU-stack, "", @progbits
