/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Multiboot entry, then long mode with the first 4 GiB mapped one to one, then C
 * in ring 3 with I/O privilege.
 *
 * Ring 3, because a KVM without hardware assistance runs that natively and
 * interprets the rest, hundreds of times slower.  The kernel part is one system
 * call, nap: wait for the timer with interrupts on.  They are on nowhere else,
 * so the handler drops its frame and returns from the system call.
 */
	.set MAGIC, 0x1BADB002
	.set FLAGS, 3 /* modules page-aligned, memory size wanted */

	.set CODE32, 0x08
	.set DATA, 0x10
	.set CODE64, 0x18
	.set USER, 0x28 /* sysret: SS = USER + 8, CS = USER + 16 */

	.set MSR_EFER, 0xC0000080
	.set MSR_STAR, 0xC0000081
	.set MSR_LSTAR, 0xC0000082
	.set MSR_SFMASK, 0xC0000084

	.section .multiboot, "a"
	.align 4
	.long MAGIC, FLAGS, -(MAGIC + FLAGS)

	.text
	.globl _start
	.code32
_start:
	cli
	cld
	movl $stack_top, %esp
	movl %eax, %ebp /* the loader's magic; %ebx: multiboot information */
	lgdt gdt_pointer
	ljmp $CODE32, $1f
1:	movl $DATA, %ecx
	movl %ecx, %ds
	movl %ecx, %es
	movl %ecx, %ss

	movl $page_directories + 7, %eax
	movl $page_pointers, %edi
2:	movl %eax, (%edi)
	addl $8, %edi
	addl $4096, %eax
	cmpl $page_directories + 4 * 4096, %eax
	jb 2b
	movl $page_pointers + 7, page_root
	movl $0x87, %eax /* present, writable, user, 2 MiB */
	movl $page_directories, %edi
3:	movl %eax, (%edi)
	addl $8, %edi
	addl $0x200000, %eax
	jnc 3b

	movl $0x20, %eax /* PAE */
	movl %eax, %cr4
	movl $page_root, %eax
	movl %eax, %cr3
	movl $MSR_EFER, %ecx
	rdmsr
	orl $0x101, %eax /* long mode, syscall */
	wrmsr
	movl %cr0, %eax
	orl $0x80000001, %eax
	movl %eax, %cr0
	ljmp $CODE64, $4f

	.code64
4:	movl $DATA, %ecx
	movl %ecx, %ds
	movl %ecx, %es
	movl %ecx, %ss
	movl $MSR_STAR, %ecx
	xorl %eax, %eax
	movl $(USER << 16) | CODE64, %edx
	wrmsr
	movl $MSR_LSTAR, %ecx
	movl $on_nap, %eax
	xorl %edx, %edx
	wrmsr
	movl $MSR_SFMASK, %ecx
	movl $0x200, %eax
	wrmsr

	movl $on_timer, %eax /* vector 0x20; an exception shuts down, which ends QEMU */
	movw %ax, idt + 0x20 * 16
	shrl $16, %eax
	movw %ax, idt + 0x20 * 16 + 6
	lidt idt_pointer

	movl %ebp, %edi
	movl %ebx, %esi
	movl $5f, %ecx
	movl $0x3002, %r11d /* I/O privilege, interrupts off */
	sysretq
5:	call guest_main
6:	jmp 6b

/* On the caller's stack: it has no red zone. */
on_nap:
	sti
	hlt
	cli
	sysretq

on_timer:
	movb $0x20, %al
	outb %al, $0x20
	movq 24(%rsp), %rsp
	sysretq

	.section .rodata
	.align 8
gdt:	.quad 0
	.quad 0x00CF9A000000FFFF /* CODE32 */
	.quad 0x00CF92000000FFFF /* DATA */
	.quad 0x00AF9A000000FFFF /* CODE64 */
	.quad 0x00CF92000000FFFF /* syscall's SS */
	.quad 0                  /* USER */
	.quad 0x00CFF2000000FFFF /* user data */
	.quad 0x00AFFA000000FFFF /* user code */
gdt_pointer:
	.word . - gdt - 1
	.long gdt
idt_pointer:
	.word 0x21 * 16 - 1
	.quad idt

	.data
	.align 16
idt:	.skip 0x20 * 16
	.word 0, CODE64, 0x8E00, 0, 0, 0, 0, 0

	.bss
	.align 4096
page_root:
	.skip 4096
page_pointers:
	.skip 4096
page_directories:
	.skip 4 * 4096
	.skip 16384
stack_top:
	.section .note.GNU-stack, "", @progbits
