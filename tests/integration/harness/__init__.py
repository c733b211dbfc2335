# SPDX-License-Identifier: BSD-2-Clause
"""Moves real guests between real QEMUs by the real command, and looks at what became of them."""
from .case import Case, main
from .memferry import Memferry
from .process import Failed, Process, await_gone, timeout
from .relay import Relay
from .qemu import Beat, Qemu, Ram, accelerators
from . import sanitizers, wire

__all__ = ["Beat", "Case", "Failed", "Memferry", "Process", "Qemu", "Ram", "Relay", "accelerators", "await_gone", "main", "sanitizers", "timeout", "wire"]
