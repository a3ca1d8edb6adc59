#include <cuda_runtime.h>
#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

namespace emulated_cuda {
namespace {

constexpr int kWarp = 32;
constexpr size_t kStack = 128 << 10;

// Those who wait for each other: a block or a warp. `turn` counts how often all have come.
struct Meeting {
  int live = 0, arrived = 0;
  long turn = 0;
  bool any = false, any_before = false;

  void settle() {
    if (arrived == 0 || arrived < live) return;
    arrived = 0;
    any_before = any;
    any = false;
    ++turn;
  }
};

struct alignas(16) Shown {
  char bytes[16];
  long turn = 0;  // of the warp's meetings
};

struct Warp {
  Meeting meeting;
  Shown shown[2][kWarp];  // in turns, so that nobody overwrites what another has yet to read
};

// A stack of its own, kept from block to block.
struct Thread {
  std::unique_ptr<char[]> stack;
  jmp_buf place;
  dim3 index;
  int number = 0;
  bool done = false;
};

// The block that runs; one at a time.
struct Block {
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  Meeting meeting;
  std::vector<char> shared;
  jmp_buf scheduler;
  Thread* current = nullptr;
  const std::function<void()>* body = nullptr;
} block;

Warp& own_warp() { return block.warps[block.current->number / kWarp]; }

// swapcontext would save the signal mask with a system call each time.
void yield() {
  if (_setjmp(block.current->place) == 0) _longjmp(block.scheduler, 1);
  threadIdx = block.current->index;
}

void meet(Meeting& meeting) {
  const long turn = meeting.turn;
  ++meeting.arrived;
  meeting.settle();
  while (meeting.turn == turn) yield();
}

void leave(Meeting& meeting) {
  --meeting.live;
  meeting.settle();
}

void live() {
  while (true) {
    (*block.body)();
    Thread& own = *block.current;
    own.done = true;
    leave(own_warp().meeting);
    leave(block.meeting);
    yield();
  }
}

void resume(Thread& thread) {
  block.current = &thread;
  if (_setjmp(block.scheduler) != 0) return;
  if (thread.stack != nullptr) _longjmp(thread.place, 1);
  thread.stack.reset(new char[kStack]);
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = thread.stack.get();
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, live, 0);
  threadIdx = thread.index;
  setcontext(&context);
}

long turns() {
  long sum = block.meeting.turn;
  for (const Warp& warp : block.warps) sum += warp.meeting.turn;
  return sum;
}

void run_block(dim3 size, const std::function<void()>& body) {
  const int count = int(size.x * size.y * size.z);
  block.body = &body;
  block.meeting = Meeting();
  block.meeting.live = count;
  block.warps.assign((count + kWarp - 1) / kWarp, Warp());
  while (int(block.threads.size()) < count) block.threads.push_back(std::make_unique<Thread>());
  for (int i = 0; i < count; ++i) {
    Thread& thread = *block.threads[i];
    thread.number = i;
    thread.done = false;
    thread.index = dim3(i % size.x, i / size.x % size.y, i / (size.x * size.y));
    ++block.warps[i / kWarp].meeting.live;
  }
  for (int done = 0; done < count;) {
    const int done_before = done;
    const long turns_before = turns();
    for (int i = 0; i < count; ++i) {
      Thread& thread = *block.threads[i];
      if (thread.done) continue;
      resume(thread);
      done += thread.done;
    }
    if (done == done_before && turns() == turns_before) {
      std::fprintf(stderr, "emulated CUDA: threads wait for others that never come\n");
      std::abort();
    }
  }
}

}  // namespace

void launch(dim3 grid, dim3 size, size_t shared_bytes, CUstream_st*,
            const std::function<void()>& body) {
  gridDim = grid;
  blockDim = size;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        block.shared.assign(shared_bytes, char(0xab));
        run_block(size, body);
      }
    }
  }
}

void* dynamic_shared() { return block.shared.data(); }

void wait_for_block() { meet(block.meeting); }

bool any_of_block(bool value) {
  block.meeting.any |= value;
  meet(block.meeting);
  return block.meeting.any_before;
}

void show(const void* value, size_t size) {
  Warp& warp = own_warp();
  const long turn = warp.meeting.turn + 1;
  Shown& own = warp.shown[turn % 2][own_lane()];
  std::memcpy(own.bytes, value, size);
  own.turn = turn;
  meet(warp.meeting);
}

const void* shown(int lane) {
  if (lane < 0 || lane >= kWarp) return nullptr;
  const long turn = own_warp().meeting.turn;
  const Shown& other = own_warp().shown[turn % 2][lane];
  return other.turn == turn ? other.bytes : nullptr;
}

int own_lane() { return block.current->number % kWarp; }

}  // namespace emulated_cuda
