// Runs a case on a GPU, compares it with the reference, and measures how long it takes.
#include "cli/gpu_measurement.h"

#include <algorithm>
#include <deque>
#include <optional>
#include <variant>
#include <vector>

#include "cases/case.h"
#include "cases/on_device.h"
#include "cli/backends.h"
#include "cli/gpu_times.h"
#include "cli/spot_check.h"
#include "cuda/device.h"
#include "cuda/memory.h"

namespace flashmla::cli {
namespace {

using cases::AnyOperation;

/// Decode operations, which may be given a schedule.
template <class Op>
constexpr bool kTakesSchedule = requires(const Op& op, const Execution& on) {
  make_schedule(op, on);
  schedule_parts(op, on);
};

/// A schedule in the memory of a GPU, for all operations with the lengths of one.
class GpuSchedule {
 public:
  template <class Op>
  GpuSchedule(const Op& op, Execution on)
      : parts_(schedule_parts(op, on)),
        batch_(op.q.shape[0]),
        schedule_(on.device.index, static_cast<std::size_t>(parts_) * kRow * sizeof(std::int32_t)),
        num_splits_(on.device.index, static_cast<std::size_t>(batch_ + 1) * sizeof(std::int32_t)) {
    Op scheduled = op;
    give_to(scheduled, on.device);
    cases::Workspace workspace(on.device, make_schedule_workspace_bytes(scheduled, on));
    workspace.give_to(on);
    make_schedule(scheduled, on);
    cuda::synchronize(on.device.index);
  }

  template <class Op>
  void give_to(Op& op, Device device) const {
    op.schedule = TensorView::contiguous(schedule_.data(), DataType::kI32, {parts_, kRow}, device);
    op.num_splits = TensorView::contiguous(num_splits_.data(), DataType::kI32, {batch_ + 1}, device);
  }

 private:
  static constexpr std::int64_t kRow = 8;
  std::int64_t parts_;
  std::int64_t batch_;
  cuda::DeviceMemory schedule_;
  cuda::DeviceMemory num_splits_;
};

/// The schedule of an operation, if it takes one and a kernel of the backend makes it.
std::optional<GpuSchedule> schedule_for(const AnyOperation& operation, const Execution& on) {
  return std::visit(
      [&]<class Op>(const Op& op) -> std::optional<GpuSchedule> {
        if constexpr (kTakesSchedule<Op>) return std::optional<GpuSchedule>(std::in_place, op, on);
        return std::nullopt;
      },
      operation);
}

AnyOperation scheduled(const AnyOperation& operation, const GpuSchedule& schedule, Device device) {
  AnyOperation with = operation;
  std::visit(
      [&]<class Op>(Op& op) {
        if constexpr (kTakesSchedule<Op>) schedule.give_to(op, device);
      },
      with);
  return with;
}

std::size_t workspace_needed(const AnyOperation& operation, const Execution& on) {
  return std::visit([&](const auto& op) { return workspace_bytes(op, on); }, operation);
}

void run_operation(const AnyOperation& operation, const Execution& on) {
  std::visit([&](const auto& op) { run(op, on); }, operation);
}

/// The same operation on several sets of tensors.
class Rotation {
 public:
  Rotation(std::vector<AnyOperation> operations, Execution on)
      : operations_(std::move(operations)),
        on_(on),
        workspace_(on.device, workspace_needed(operations_.front(), on)) {
    workspace_.give_to(on_);
    // A small case is called often enough that the times of a graph mean something.
    constexpr int kLeastCalls = 8;
    while (calls_ < kLeastCalls) calls_ += static_cast<int>(operations_.size());
  }

  int calls() const { return calls_; }

  /// Enqueues all calls.
  void run_all() const {
    for (int i = 0; i < calls_; ++i)
      run_operation(operations_[static_cast<std::size_t>(i) % operations_.size()], on_);
  }

  Times in_graph(const cuda::Stream& stream, double seconds) const {
    const cuda::Graph graph(stream, [&] { run_all(); });
    return time_on_gpu(stream, [&] { graph.launch(); }, calls_, seconds);
  }

  Times eager(const cuda::Stream& stream, double seconds) const {
    return time_on_gpu(stream, [&] { run_all(); }, calls_, seconds);
  }

 private:
  std::vector<AnyOperation> operations_;
  Execution on_;
  cases::Workspace workspace_;
  int calls_ = 0;
};

/// Runs the operation once and compares what it wrote with the reference.
std::string check(const cases::Case& random, const cases::Step& step, const cases::OnGpu& copy,
                  const AnyOperation& operation, Execution on) {
  for (const auto& [name, tensor] : step.outputs) {
    if (!random.tensors.contains(name)) std::ranges::fill(tensor.memory(), std::byte{0xff});
  }
  copy.copy_again();
  cases::Workspace workspace(on.device, workspace_needed(operation, on));
  workspace.give_to(on);
  run_operation(operation, on);
  cuda::synchronize(on.device.index);
  copy.copy_back();
  return check_against_reference(random, step);
}

}  // namespace

int copies_needed(std::size_t bytes, std::size_t l2_bytes) {
  constexpr std::size_t kMost = 256;
  const std::size_t wanted = 2 * l2_bytes / std::max<std::size_t>(bytes, 1) + 1;
  return static_cast<int>(std::clamp<std::size_t>(wanted, 1, kMost));
}

GpuMeasurement measure_gpu_case(const BenchCase& what, const Execution& pinned, std::uint64_t seed,
                                double seconds) {
  const cases::Case random = random_case(what.operation, what.shape, Purpose::kBench, seed);
  const std::vector<cases::Step> steps = cases::prepare(random);
  const cases::Step& step = steps.front();
  const cuda::Stream stream(pinned.device.index);
  Execution on = pinned;
  on.stream = stream.handle();

  GpuMeasurement result;
  result.what = what;
  result.kernel = kernel_for(step, on);
  result.work = work_of(step.operation);
  std::deque<cases::OnGpu> copies;
  copies.emplace_back(step.operation, on.device);
  result.checked = check(random, step, copies.front(), copies.front().operation(), on);
  const std::optional<GpuSchedule> schedule = schedule_for(copies.front().operation(), on);
  result.has_schedule = schedule.has_value();
  if (schedule) {
    check(random, step, copies.front(), scheduled(copies.front().operation(), *schedule, on.device), on);
  }

  result.copies = copies_needed(copies.front().bytes(), cuda::device_properties(on.device.index).l2_bytes);
  while (static_cast<int>(copies.size()) < result.copies) copies.emplace_back(step.operation, on.device);
  std::vector<AnyOperation> plain;
  std::vector<AnyOperation> operations;
  for (const cases::OnGpu& copy : copies) {
    plain.push_back(copy.operation());
    operations.push_back(schedule ? scheduled(copy.operation(), *schedule, on.device) : copy.operation());
  }
  const Rotation rotation(operations, on);
  result.calls = rotation.calls();
  result.graph = rotation.in_graph(stream, seconds);
  result.eager = rotation.eager(stream, seconds);
  if (schedule) result.unscheduled = Rotation(plain, on).in_graph(stream, seconds);
  result.state_after = gpu_state(cuda::device_properties(on.device.index).pci_bus_id);
  return result;
}

}  // namespace flashmla::cli
