// The rows of the kernel table.
#include "api/kernel_table.h"

#include "cpu/cpu.h"
#include "cuda/portable/portable.h"
#include "flashmla/kernels.h"
#include "flashmla/operations.h"
#include "reference/reference.h"

namespace flashmla {
namespace {

template <class Op>
Support every_case(const Op&, const Execution&) {
  return {};
}

Support reference_available(Device device) {
  if (device.type != DeviceType::kCpu) return {false, "needs tensors in CPU memory"};
  return {true, "float64"};
}

Support cpu_available(Device device) {
  if (device.type != DeviceType::kCpu) return {false, "needs tensors in CPU memory"};
  return {true, cpu::instruction_set()};
}

template <class Op>
constexpr Kernel<Op> kCpu = {
    "cpu",
    "cpu/tiled",
    cpu_available,
    every_case<Op>,
    [](const Op& op, const Execution& on) { return cpu::workspace_bytes(op, on); },
    [](const Op& op, const Execution& on) { cpu::run(op, on); },
};

template <class Op>
constexpr Kernel<Op> kReference = {
    "reference",
    "reference/float64",
    reference_available,
    every_case<Op>,
    [](const Op& op, const Execution& on) { return reference::workspace_bytes(op, on); },
    [](const Op& op, const Execution& on) { reference::run(op, on); },
};

template <class Op>
constexpr Kernel<Op> portable_kernel(std::string_view name) {
  return {
      "portable",
      name,
      portable::available,
      [](const Op& op, const Execution& on) { return portable::supports(op, on); },
      [](const Op& op, const Execution& on) { return portable::workspace_bytes(op, on); },
      [](const Op& op, const Execution& on) { portable::run(op, on); },
  };
}

/// Kernels in the order in which they are tried. An operation with more kernels gets a specialization.
template <class Op>
constexpr Kernel<Op> kTable[] = {kCpu<Op>, kReference<Op>};

template <>
constexpr Kernel<DenseDecode> kTable<DenseDecode>[] = {portable_kernel<DenseDecode>("portable/mma_sync"),
                                                       kCpu<DenseDecode>, kReference<DenseDecode>};

template <>
constexpr Kernel<MakeSchedule> kTable<MakeSchedule>[] = {portable_kernel<MakeSchedule>("portable/schedule"),
                                                         kCpu<MakeSchedule>, kReference<MakeSchedule>};

}  // namespace

template <class Op>
std::span<const Kernel<Op>> kernel_table() {
  return kTable<Op>;
}

template std::span<const Kernel<DenseDecode>> kernel_table();
template std::span<const Kernel<SparseDecode>> kernel_table();
template std::span<const Kernel<SparsePrefill>> kernel_table();
template std::span<const Kernel<MhaForward>> kernel_table();
template std::span<const Kernel<MhaBackward>> kernel_table();
template std::span<const Kernel<QuantizeKv>> kernel_table();
template std::span<const Kernel<DequantizeKv>> kernel_table();
template std::span<const Kernel<AppendKv>> kernel_table();
template std::span<const Kernel<MergeStates>> kernel_table();
template std::span<const Kernel<MakeSchedule>> kernel_table();

std::vector<KernelInfo> kernels(Device device) {
  std::vector<KernelInfo> list;
  Operations::for_each([&]<class Op>() {
    for (const Kernel<Op>& kernel : kernel_table<Op>()) {
      const Support support = kernel.available(device);
      list.push_back(
          {Op::fields().operation, kernel.backend, kernel.name, support.yes, std::string(support.reason)});
    }
  });
  return list;
}

}  // namespace flashmla
