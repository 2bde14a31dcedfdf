// How long the stages take on the device: events around them, where somebody asked for it.
#pragma once

namespace splat::cuda {

struct Workspace;

enum Stage { kPreprocess, kSortBin, kForward, kLoss, kBlendBackward, kGeometry, kStages };

/// The stages since the last forward pass began. Its events are used again and again.
class Stages {
 public:
  Stages() = default;
  Stages(const Stages&) = delete;
  Stages& operator=(const Stages&) = delete;
  ~Stages();

  /// Forget the times so far.
  void restart() { count_ = 0; }
  /// Wait for the device and sum up each stage [ms].
  void read(double* ms) const;

 private:
  friend class InStage;
  static constexpr int kMost = 64;  // stages that run later than that are not timed
  struct Mark {
    Stage stage;
    void* begin = nullptr;  // cudaEvent_t
    void* end = nullptr;
  };
  Mark marks_[kMost];
  int count_ = 0;
};

/// A stage runs on `stream` from here to the end of the scope. Does nothing unless w.timing is on;
/// nothing either while the stream is captured into a graph.
class InStage {
 public:
  InStage(Workspace& w, Stage stage, void* stream);
  InStage(const InStage&) = delete;
  InStage& operator=(const InStage&) = delete;
  ~InStage();

 private:
  Stages::Mark* mark_ = nullptr;
  void* stream_;
};

}  // namespace splat::cuda
