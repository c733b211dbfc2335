/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Entry of each vCPU in long mode, ring 0, paging on: edi is the vCPU.  boot() makes the tables, and the rest runs
 * in ring 3 with I/O privilege: a KVM without hardware assistance runs that natively and interprets the rest.
 */
	.section .start, "ax"
	.globl _start
_start:
	movl %edi, %ebx
	movl %ebx, %eax
	incl %eax
	shll $14, %eax
	leaq stacks(%rip), %rsp
	addq %rax, %rsp
	call boot                  /* returns TR's selector */
	lgdt gdt_pointer(%rip)
	lidt idt_pointer(%rip)
	ltr %ax
	movl %ebx, %edi
	movl $0x23, %ecx
	movl %ecx, %ds
	movl %ecx, %es
	movq %rsp, %rdx
	pushq $0x23
	pushq %rdx
	pushq $0x3002              /* I/O privilege, interrupts off */
	pushq $0x2b
	leaq guest_main(%rip), %rdx
	pushq %rdx
	iretq

/* The PIT's, by the first PIC. */
	.text
	.globl on_pit, on_apic, on_spurious
on_pit:
	pushq %rax
	lock incq PIT_TICKS
	movb $0x20, %al
	outb %al, $0x20
	popq %rax
	iretq

/* Each vCPU's own: its APIC's number says which. */
on_apic:
	pushq %rax
	pushq %rcx
	movl $0xfee00000, %ecx
	movl 0x20(%rcx), %eax
	shrl $24, %eax
	imull $BOX_VCPU_SIZE, %eax, %eax
	lock incq APIC_TICKS(%rax)
	movl $0, 0xb0(%rcx)
	popq %rcx
	popq %rax
on_spurious:
	iretq

/* Exceptions: the vector, and nothing more. */
	.balign 16
	.globl exceptions
exceptions:
	.irp vector,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	.balign 16
	pushq $\vector
	jmp on_exception
	.endr
on_exception:
	popq %rax
	movl $0x510, %edx
	outl %eax, %dx
	jmp on_exception

/* Fills the general registers with a pattern of its own, runs on, and counts those that changed.  rdi: rounds. */
	.globl spin_registers
spin_registers:
	pushq %rbx
	pushq %rbp
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	movq %rdi, %rcx
	movabsq $0x1111111111111111, %rax
	movabsq $0x2222222222222222, %rbx
	movabsq $0x3333333333333333, %rdx
	movabsq $0x4444444444444444, %rsi
	movabsq $0x5555555555555555, %rdi
	movabsq $0x6666666666666666, %rbp
	leaq (%rax,%rbx), %r8
	leaq (%rax,%rdx), %r9
	leaq (%rax,%rsi), %r10
	leaq (%rax,%rdi), %r11
	leaq (%rax,%rbp), %r12
	leaq (%rbx,%rbp), %r13
	leaq (%rdx,%rbp), %r14
	leaq (%rsi,%rbp), %r15
1:	decq %rcx
	jnz 1b
	subq %rax, %r8
	subq %rbx, %r8
	subq %rax, %r9
	subq %rdx, %r9
	subq %rax, %r10
	subq %rsi, %r10
	subq %rax, %r11
	subq %rdi, %r11
	subq %rax, %r12
	subq %rbp, %r12
	subq %rbx, %r13
	subq %rbp, %r13
	subq %rdx, %r14
	subq %rbp, %r14
	subq %rsi, %r15
	subq %rbp, %r15
	addq %rbx, %rax
	addq %rdx, %rax
	addq %rsi, %rax
	addq %rdi, %rax
	addq %rbp, %rax
	movabsq $0x6666666666666665, %rbx /* 1 to 6, each 16 times, cut at 64 bits */
	subq %rbx, %rax
	orq %r8, %rax
	orq %r9, %rax
	orq %r10, %rax
	orq %r11, %rax
	orq %r12, %rax
	orq %r13, %rax
	orq %r14, %rax
	orq %r15, %rax
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbp
	popq %rbx
	ret

/* Floating point: eight x87 registers and sixteen of SSE, all different, by a seed in edi; then they stay. */
	.globl fill_vectors
fill_vectors:
	fninit
	pushq $0x27f
	fldcw (%rsp)
	popq %rax
	pushq $0x9f80
	ldmxcsr (%rsp)
	popq %rax
	.irp n, 1, 2, 3, 4, 5, 6, 7, 8
	leal \n(%rdi), %eax
	pushq %rax
	fildll (%rsp)
	popq %rax
	.endr
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	leal 0x100+\n(%rdi), %eax
	imull $0x01010101, %eax, %eax
	movd %eax, %xmm\n
	pshufd $0x1b, %xmm\n, %xmm\n
	.endr
	ret

/* The upper halves of AVX, which fxsave does not know: of ymm0 to ymm3, to rdi. */
	.globl fill_upper, read_upper
fill_upper:
	.irp n, 0, 1, 2, 3
	vinsertf128 $1, %xmm\n, %ymm\n, %ymm\n
	.endr
	ret
read_upper:
	.irp n, 0, 1, 2, 3
	vextractf128 $1, %ymm\n, (16 * \n)(%rdi)
	.endr
	ret

	.data
	.balign 16
	.globl gdt, idt
gdt:	.quad 0
	.quad 0
	.quad 0x00AF9A000000FFFF /* 0x10: ring 0, code */
	.quad 0x00CF92000000FFFF /* 0x18: ring 0, data */
	.quad 0x00CFF2000000FFFF /* 0x20: ring 3, data */
	.quad 0x00AFFA000000FFFF /* 0x28: ring 3, code */
	.fill 4, 8, 0            /* 0x30, 0x40: a TSS for each vCPU */
gdt_pointer:
	.word . - gdt - 1
	.quad gdt
idt_pointer:
	.word 256 * 16 - 1
	.quad idt
	.balign 16
idt:	.fill 512, 8, 0

	.bss
	.balign 16
stacks:
	.skip 2 << 14
	.section .note.GNU-stack, "", @progbits
