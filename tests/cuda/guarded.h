// Runs an operation on the emulator so that its kernels may touch the operation's tensors and its workspace,
// and nothing else: no gap between rows, nothing in front and nothing behind.
#pragma once

#include <cstddef>
#include <string>
#include <variant>
#include <vector>

#include "cases/case.h"
#include "cases/on_device.h"
#include "cuda/emulator/global_memory.h"
#include "flashmla/flashmla.h"

namespace flashmla {

inline const Execution kOnEmulator = {.device = {DeviceType::kCuda, 0}, .backend = "portable"};

/// The elements of a tensor, without the gaps that its strides leave.
inline emulator::Region region_of(const std::string& name, const TensorView& view) {
  const std::size_t element = size_of(view.type);
  std::vector<emulator::Extent> extents;
  for (int dim = 0; dim < view.ndim; ++dim) {
    extents.push_back({view.shape[dim], view.strides[dim] * static_cast<std::int64_t>(element)});
  }
  return {name, view.data, element, extents};
}

/// Runs `op`, whose tensors are in host memory, where they are. Only in checked mode every access is looked
/// at.
template <class Op>
void run_guarded(const Op& op) {
  const cases::ShapesOn there(op, kOnEmulator.device);
  const Op& seen_there = std::get<Op>(there.operation());
  emulator::MemoryScope scope;
  for (const TensorField<Op>& field : Op::fields().tensors) {
    const TensorView& view = seen_there.*std::get<TensorView Op::*>(field.member);
    if (view.given()) scope.add(region_of(std::string(field.name), view));
  }
  std::vector<std::byte> workspace(workspace_bytes(seen_there, kOnEmulator), std::byte{0xff});
  scope.add("the workspace", workspace.data(), workspace.size());
  Execution on = kOnEmulator;
  on.workspace = workspace.data();
  on.workspace_size = workspace.size();
  run(seen_there, on);
}

}  // namespace flashmla
