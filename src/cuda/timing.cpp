// Streams, graphs and times of a GPU for tools and tests.
#include "cuda/timing.h"

#include <cuda_runtime_api.h>

#include <memory>
#include <type_traits>

#include "cuda/error.h"

namespace flashmla::cuda {
namespace {

cudaStream_t stream_of(const Stream& stream) { return static_cast<cudaStream_t>(stream.handle()); }

struct DestroyEvent {
  void operator()(cudaEvent_t event) const { (void)cudaEventDestroy(event); }
};
using Event = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, DestroyEvent>;

Event make_event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreate(&event), "an event");
  return Event(event);
}

}  // namespace

Stream::Stream(int ordinal) {
  check(cudaGetDevice(&device_before_), "the current GPU");
  check(cudaSetDevice(ordinal), text("GPU ", ordinal));
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
  handle_ = stream;
}

Stream::~Stream() {
  (void)cudaStreamDestroy(static_cast<cudaStream_t>(handle_));
  (void)cudaSetDevice(device_before_);
}

void Stream::synchronize() const { check(cudaStreamSynchronize(stream_of(*this)), "work of a stream"); }

Graph::Graph(const Stream& stream, const std::function<void()>& work) : stream_(stream) {
  check(cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeThreadLocal), "capturing a graph");
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {
    (void)cudaStreamEndCapture(stream_of(stream), &graph);
    if (graph != nullptr) (void)cudaGraphDestroy(graph);
    (void)cudaGetLastError();
    throw;
  }
  check(cudaStreamEndCapture(stream_of(stream), &graph), "capturing a graph");
  cudaGraphExec_t executable = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
  (void)cudaGraphDestroy(graph);
  check(error, "making a graph executable");
  executable_ = executable;
}

Graph::~Graph() { (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_)); }

void Graph::launch() const {
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_), stream_of(stream_)), "launching a graph");
}

std::vector<double> time_each(const Stream& stream, const std::function<void()>& work, int repetitions) {
  std::vector<Event> events;
  for (int i = 0; i <= repetitions; ++i) events.push_back(make_event());
  check(cudaEventRecord(events[0].get(), stream_of(stream)), "an event");
  for (std::size_t i = 1; i < events.size(); ++i) {
    work();
    check(cudaEventRecord(events[i].get(), stream_of(stream)), "an event");
  }
  stream.synchronize();
  std::vector<double> seconds;
  for (std::size_t i = 1; i < events.size(); ++i) {
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, events[i - 1].get(), events[i].get()),
          "the time between events");
    seconds.push_back(milliseconds * 1e-3);
  }
  return seconds;
}

void copy_on(const Stream& stream, void* to, const void* from, std::size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_of(stream)), "copying on a GPU");
}

}  // namespace flashmla::cuda
