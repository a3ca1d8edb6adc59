#pragma once

namespace placket {

// While one of these lives, the large blocks of host memory that tensors give back are kept for the
// tensors to come instead of going back to the system, which would hand them out again page by
// page, zeroed: a tenth of a training step on the CPU. A step's blocks are those of the step
// before, so little more is kept than the most that was in use at a time. Holds for the tensors of
// the whole process; what is kept is freed with the last of these objects.
class KeepHostMemory {
 public:
  KeepHostMemory();
  ~KeepHostMemory();
  KeepHostMemory(const KeepHostMemory&) = delete;
  KeepHostMemory& operator=(const KeepHostMemory&) = delete;
};

}  // namespace placket
