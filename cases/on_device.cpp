// Runs operations whose tensors are in host memory on the device of a backend, on copies.
#include "cases/on_device.h"

#include <cstdint>
#include <span>
#include <utility>
#include <variant>

#include "flashmla/kernels.h"

namespace flashmla::cases {
namespace {

bool is_written(Role role) { return role == Role::kOutput || role == Role::kUpdate; }

/// Calls `visit(role, view)` for every tensor of the operation. Lists are replaced by ones in `lists`.
template <class Op, class Visit>
void visit_tensors(Op& op, std::vector<std::vector<TensorView>>& lists, Visit&& visit) {
  for (const TensorField<Op>& field : Op::fields().tensors) {
    if (const auto* one = std::get_if<TensorView Op::*>(&field.member)) {
      if ((op.**one).given()) visit(field.role, op.**one);
    } else {
      auto& list = op.*std::get<std::span<const TensorView> Op::*>(field.member);
      lists.emplace_back(list.begin(), list.end());
      for (TensorView& view : lists.back()) visit(field.role, view);
      list = lists.back();
    }
  }
}

/// The bytes between the first and the last one of a tensor, which need not be those of its first and last
/// element: a stride may be negative.
struct Extent {
  std::int64_t first = 0;  ///< from `view.data`
  std::int64_t bytes = 0;
};

Extent extent_of(const TensorView& view) {
  const auto size = static_cast<std::int64_t>(size_of(view.type));
  std::int64_t lowest = 0;
  std::int64_t highest = 0;
  for (int dim = 0; dim < view.ndim; ++dim) {
    if (view.shape[dim] == 0) return {};
    const std::int64_t reach = (view.shape[dim] - 1) * view.strides[dim];
    (reach < 0 ? lowest : highest) += reach;
  }
  return {.first = lowest * size, .bytes = (highest - lowest + 1) * size};
}

}  // namespace

Device device_of(std::string_view backend) {
  bool known = false;
  for (const KernelInfo& kernel : kernels()) {
    if (kernel.backend != backend) continue;
    if (kernel.available) return {};
    known = true;
  }
  return {known ? DeviceType::kCuda : DeviceType::kCpu, 0};
}

ShapesOn::ShapesOn(const AnyOperation& operation, Device device) : operation_(operation) {
  std::visit(
      [&](auto& op) { visit_tensors(op, lists_, [&](Role, TensorView& view) { view.device = device; }); },
      operation_);
}

OnGpu::OnGpu(const AnyOperation& host, Device device) : operation_(host) {
  const auto add = [&](Role role, TensorView& view) {
    const Extent extent = extent_of(view);
    Copy& copy = copy_of(view.as<std::byte>() + extent.first, static_cast<std::size_t>(extent.bytes), device);
    copy.written |= is_written(role);
    view.data = copy.device - extent.first;
    view.device = device;
  };
  std::visit([&](auto& op) { visit_tensors(op, lists_, add); }, operation_);
}

OnGpu::Copy& OnGpu::copy_of(std::byte* host, std::size_t bytes, Device device) {
  constexpr std::uintptr_t kAlignment = 256;
  for (Copy& copy : copies_) {
    if (copy.host == host && copy.bytes == bytes) return copy;
  }
  Copy& copy = copies_.emplace_back();
  copy.host = host;
  copy.bytes = bytes;
  const std::size_t offset = reinterpret_cast<std::uintptr_t>(host) % kAlignment;
  copy.memory = cuda::DeviceMemory(device.index, offset + bytes);
  copy.device = copy.memory.data() + offset;
  if (bytes > 0) cuda::copy(copy.device, host, bytes);
  return copy;
}

void OnGpu::copy_again() const {
  for (const Copy& copy : copies_) {
    if (copy.bytes > 0) cuda::copy(copy.device, copy.host, copy.bytes);
  }
}

void OnGpu::copy_back() const {
  for (const Copy& copy : copies_) {
    if (copy.written && copy.bytes > 0) cuda::copy(copy.host, copy.device, copy.bytes);
  }
}

void OnGpu::copy_all_back() const {
  for (const Copy& copy : copies_) {
    if (copy.bytes > 0) cuda::copy(copy.host, copy.device, copy.bytes);
  }
}

std::size_t OnGpu::bytes() const {
  std::size_t sum = 0;
  for (const Copy& copy : copies_) sum += copy.bytes;
  return sum;
}

Workspace::Workspace(Device device, std::size_t bytes) : bytes_(bytes) {
  if (device.type == DeviceType::kCpu) {
    host_.assign(bytes, std::byte{0xff});
  } else {
    device_ = cuda::DeviceMemory(device.index, bytes);
    cuda::fill(device_.data(), 0xff, bytes);
  }
}

void Workspace::give_to(Execution& on) {
  on.workspace = device_.data() != nullptr ? device_.data() : host_.data();
  on.workspace_size = bytes_;
}

void run_on(const AnyOperation& operation, const Execution& on) {
  const auto run_here = [&](const AnyOperation& here) {
    std::visit(
        [&](const auto& op) {
          Workspace workspace(on.device, flashmla::workspace_bytes(op, on));
          Execution with_workspace = on;
          workspace.give_to(with_workspace);
          flashmla::run(op, with_workspace);
          if (on.device.type == DeviceType::kCuda) cuda::synchronize(on.device.index);
        },
        here);
  };
  if (on.device.type == DeviceType::kCpu) return run_here(operation);
  const OnGpu copies(operation, on.device);
  run_here(copies.operation());
  copies.copy_back();
}

}  // namespace flashmla::cases
