// Events around the stages of the pipeline, and what the bindings ask of the device.
#include "cuda/stages.h"

#include "cuda/device.cuh"

namespace splat::cuda {
namespace {

cudaEvent_t as_event(void* e) { return static_cast<cudaEvent_t>(e); }

void* new_event() {
  cudaEvent_t e = nullptr;
  check(cudaEventCreate(&e), "an event");
  return e;
}

bool captured(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "whether a stream is captured");
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace

Stages::~Stages() {
  for (const Mark& m : marks_) {  // errors: nobody to tell, the events are gone with the device
    if (m.begin) cudaEventDestroy(as_event(m.begin));
    if (m.end) cudaEventDestroy(as_event(m.end));
  }
}

void Stages::read(double* ms) const {
  for (int k = 0; k < kStages; k++) ms[k] = 0;
  for (int k = 0; k < count_; k++) {
    const Mark& m = marks_[k];
    float elapsed = 0;
    check(cudaEventSynchronize(as_event(m.end)), "waiting for a stage");
    check(cudaEventElapsedTime(&elapsed, as_event(m.begin), as_event(m.end)), "a stage's time");
    ms[m.stage] += elapsed;
  }
}

InStage::InStage(Workspace& w, Stage stage, void* stream) : stream_(stream) {
  if (!w.timing || w.stages.count_ == Stages::kMost || captured(as_stream(stream))) return;
  Stages::Mark& m = w.stages.marks_[w.stages.count_];
  if (!m.begin) m.begin = new_event();
  if (!m.end) m.end = new_event();
  check(cudaEventRecord(as_event(m.begin), as_stream(stream)), "an event");
  m.stage = stage;
  w.stages.count_++;
  mark_ = &m;
}

InStage::~InStage() {
  if (mark_) cudaEventRecord(as_event(mark_->end), as_stream(stream_));
}

Counts read_counts(const Workspace& w, Stream stream) {
  check(cudaMemcpyAsync(w.read, w.counts.data(), sizeof(Counts), cudaMemcpyDeviceToHost,
                        as_stream(stream)),
        "reading the counts");
  check(cudaStreamSynchronize(as_stream(stream)), "waiting for the counts");
  return *w.read;
}

void use_device(int index) { check(cudaSetDevice(index), "cannot use the device"); }

}  // namespace splat::cuda
