// Registers of a warpgroup, and kernels that wait for other kernels.
#pragma once

#include "cuda/ptx/target.h"
#ifndef FLASHMLA_ON_GPU
#include "cuda/emulator/instructions.h"
#endif

namespace flashmla::ptx {

/// `setmaxnreg.inc`: waits until each thread of the warpgroup can have `kRegisters`. A multiple of 8. SM90a.
template <int kRegisters>
FLASHMLA_DEVICE void increase_registers(FLASHMLA_ONLY_PLACE) {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
#ifdef FLASHMLA_ON_GPU
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#else
  emulator::set_max_registers(kRegisters, place);
#endif
}

/// `setmaxnreg.dec`: gives registers back.
template <int kRegisters>
FLASHMLA_DEVICE void decrease_registers(FLASHMLA_ONLY_PLACE) {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
#ifdef FLASHMLA_ON_GPU
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#else
  emulator::set_max_registers(kRegisters, place);
#endif
}

/// `griddepcontrol.launch_dependents`: the kernel launched behind this one may start. Nothing before SM90.
FLASHMLA_DEVICE void launch_dependents() {
#ifdef FLASHMLA_ON_GPU
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
#endif
}

/// `griddepcontrol.wait`: until the kernel before this one has ended and its writes are visible. Nothing
/// before SM90, where kernels of a stream do not overlap.
FLASHMLA_DEVICE void wait_for_previous_kernel() {
#ifdef FLASHMLA_ON_GPU
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
#endif
}

}  // namespace flashmla::ptx
