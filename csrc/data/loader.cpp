#include "data/loader.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <limits>
#include <map>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "base/interrupt.h"
#include "base/random.h"
#include "data/decode.h"
#include "data/mask.h"
#include "data/picture.h"
#include "data/pooled.h"
#include "data/resident.h"

namespace placket {
namespace {

using Clock = std::chrono::steady_clock;

at::Tensor to_tensor(const std::vector<int64_t>& values) {
  at::Tensor tensor = at::empty({int64_t(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), tensor.mutable_data_ptr<int64_t>());
  return tensor;
}

}  // namespace

struct Loader::State {
  // A batch on its way. What a row writes belongs to that row alone; the counters are guarded by
  // mutex.
  struct Pending {
    Batch batch;
    std::vector<Image> pictures;  // [N] where pixels are kept
    std::vector<Frame> frames;    // [N] where pixels are resident
    MaskFiles masks;
    int64_t rows = 0;
    int64_t taken = 0;     // rows given to a thread
    int64_t finished = 0;  // rows done
    bool ready = false;
    int64_t failed_row = std::numeric_limits<int64_t>::max();
    std::exception_ptr error;
  };

  std::shared_ptr<const ImageList> images;
  std::shared_ptr<const LabelTable> labels;
  std::vector<int64_t> class_offsets;  // [A + 1] of each attribute's values in Batch::classes
  std::shared_ptr<const BatchSource> source;
  LoaderConfig config;

  mutable std::mutex mutex;
  std::condition_variable work;   // a row can be taken, or a batch begun
  std::condition_variable ready;  // a batch is finished
  // By step. Shared, since a thread may still be at a row of a batch that seek() has dropped.
  std::deque<std::shared_ptr<Pending>> queue;
  int64_t next_step = 0;  // the step of the batch to be begun next
  bool stop = false;
  double waited = 0;
  std::map<int64_t, std::string> skipped;  // image -> cause
  std::vector<std::thread> threads;

  ~State() {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      stop = true;
    }
    work.notify_all();
    for (std::thread& thread : threads) thread.join();
  }

  std::shared_ptr<Pending> with_free_row() const {
    for (const auto& pending : queue) {
      if (pending->taken < pending->rows) return pending;
    }
    return nullptr;
  }
  bool may_begin() const { return int64_t(queue.size()) < config.prefetch; }

  void run() {
    std::unique_lock<std::mutex> lock(mutex);
    while (true) {
      work.wait(lock, [this] { return stop || may_begin() || with_free_row() != nullptr; });
      if (stop) return;
      // Held here: the iterator may drop the batch from the queue meanwhile.
      const std::shared_ptr<Pending> pending = with_free_row();
      if (pending != nullptr) {
        do_row(*pending, lock);
      } else {
        begin(lock);
      }
    }
  }

  // Takes the lock held and returns it held; so does do_row.
  void begin(std::unique_lock<std::mutex>& lock) {
    auto pending = std::make_shared<Pending>();
    queue.push_back(pending);
    const int64_t step = next_step++;
    lock.unlock();
    int64_t rows = 0;
    std::exception_ptr error;
    try {
      pending->batch = make_empty(source->plan(step));
      rows = int64_t(pending->batch.plan.images.size());
      if (images->resident) {
        pending->frames.resize(size_t(rows));
      } else if (config.keep_pixels) {
        pending->pictures.resize(size_t(rows));
      }
      if (config.views != "crop") {
        for (const int64_t image : pending->batch.plan.images) {
          pending->masks.expect(images->mask_path(image));
        }
      }
    } catch (...) {
      error = std::current_exception();
      rows = 0;
    }
    lock.lock();
    pending->error = error;
    pending->rows = rows;
    pending->ready = rows == 0;
    work.notify_all();
    ready.notify_all();
  }

  void do_row(Pending& pending, std::unique_lock<std::mutex>& lock) {
    const int64_t row = pending.taken++;
    lock.unlock();
    std::exception_ptr error;
    try {
      load_row(pending, row);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (error && row < pending.failed_row) {
      pending.failed_row = row;
      pending.error = error;
    }
    if (++pending.finished < pending.rows) return;
    if (!pending.pictures.empty() && !pending.error) {
      lock.unlock();
      try {
        keep_pictures(pending.pictures, config.pin_memory, pending.batch);
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      pending.error = error;
    }
    pending.ready = true;
    ready.notify_all();
  }

  Batch make_empty(BatchPlan plan) const {
    for (const int64_t image : plan.images) {
      TORCH_CHECK_INDEX(image >= 0 && image < images->size(),
                        "Loader: the source's images must be in [0, ", images->size(), "), got ",
                        image);
    }
    Batch batch;
    const int64_t rows = int64_t(plan.images.size());
    const int64_t size = config.preprocess.size;
    if (!images->resident) {
      const auto empty_input = [&](int64_t count) {
        return pooled_empty({count, 3, size, size}, {size * size * 3, 1, size * 3, 3}, at::kFloat,
                            config.pin_memory);
      };
      batch.images = empty_input(rows);
      if (config.views == "both") batch.segmented = empty_input(rows);
    }
    if (config.views != "both") batch.segmented = at::empty({0});
    batch.attributes = to_tensor(plan.attributes);
    batch.values = to_tensor(plan.values);
    keep_pictures({}, config.pin_memory, batch);
    const int64_t attributes = labels ? int64_t(labels->values.size()) : 0;
    batch.labels = at::empty({rows, attributes}, at::kLong);
    batch.classes = at::empty({rows, labels ? class_offsets.back() : 0}, at::kBool);
    if (labels) {
      for (int64_t row = 0; row < rows; ++row) write_labels(plan.images[row], row, batch);
    }
    batch.plan = std::move(plan);
    return batch;
  }

  // The first value of every attribute that the image carries, and all its values.
  void write_labels(int64_t image, int64_t row, Batch& batch) const {
    const int64_t attributes = batch.labels.size(1), classes = batch.classes.size(1);
    int64_t* first = batch.labels.mutable_data_ptr<int64_t>() + row * attributes;
    bool* carried = batch.classes.mutable_data_ptr<bool>() + row * classes;
    std::fill_n(first, attributes, -1);
    std::fill_n(carried, classes, false);
    for (int64_t i = labels->begin[image]; i < labels->begin[image + 1]; ++i) {
      int64_t& value = first[labels->attribute[i]];
      if (value < 0) value = labels->value[i];
      carried[class_offsets[size_t(labels->attribute[i])] + labels->value[i]] = true;
    }
  }

  void load_row(Pending& pending, int64_t row) {
    if (!config.skip_unreadable) return load_image(pending, row);
    BatchPlan& plan = pending.batch.plan;
    const int64_t drawn = plan.images[row];
    while (true) {
      const int64_t image = plan.images[row];
      if (!is_skipped(image)) {
        try {
          load_image(pending, row);
          break;
        } catch (const std::runtime_error& error) {
          const std::lock_guard<std::mutex> lock(mutex);
          skipped.emplace(image, error.what());
        }
      }
      plan.images[row] = replacement(plan, row);
      if (plan.images[row] == drawn) {
        throw std::runtime_error(images->path(drawn) +
                                 ": cannot be read, nor can any image that could replace it");
      }
    }
    if (plan.images[row] == drawn || !labels) return;
    write_labels(plan.images[row], row, pending.batch);
  }

  bool is_skipped(int64_t image) const {
    const std::lock_guard<std::mutex> lock(mutex);
    return skipped.count(image) > 0;
  }

  // The image after the row's that carries the value the row was drawn for, if it was for one.
  int64_t replacement(const BatchPlan& plan, int64_t row) const {
    const int64_t count = images->size();
    const auto serves = [&](int64_t image) {
      return plan.attributes.empty() ||
             source->serves(image, plan.attributes[row], plan.values[row]);
    };
    int64_t image = plan.images[row];
    do {
      image = (image + 1) % count;
    } while (!serves(image));
    return image;
  }

  // What `choose` returns; an error of it as one of the image.
  template <class F>
  Frame named(int64_t image, const F& choose) const {
    try {
      return choose();
    } catch (const c10::Error& error) {
      throw std::runtime_error(images->path(image) + ": " + error.what_without_backtrace());
    }
  }

  Region region_of(Pending& pending, int64_t image) const {
    return {pending.masks.get(images->mask_path(image), orientation_of(config.preprocess)),
            images->masks->numbers[image], images->masks->bits};
  }

  void load_image(Pending& pending, int64_t row) const {
    const int64_t index = pending.batch.plan.images[row];
    RandomStream random(config.seed, kRandomAugment, uint64_t(pending.batch.plan.epoch),
                        uint32_t(pending.batch.plan.positions[row]));
    if (images->resident) {
      pending.frames[row] = named(index, [&] {
        return frame_resident(*images, index, config.preprocess, config.augment, random);
      });
      return;
    }
    std::optional<Box> box;
    if (!images->boxes.empty()) box = images->boxes[index];
    const bool recolored = config.augment.changes_colors();
    const bool cut = config.keep_pixels || recolored;
    Frame frame;
    const auto part = [&](int64_t height, int64_t width) {
      frame = named(index, [&] {
        return frame_picture(height, width, box, config.preprocess, config.augment, &random);
      });
      return cut ? Box{frame.x0, frame.y0, frame.x1, frame.y1}
                 : input_part(height, width, frame, config.preprocess);
    };
    const LoadedImage loaded = images->load(index, orientation_of(config.preprocess), part);
    const ImageView& image = loaded.view;
    const int64_t size = config.preprocess.size;
    const int64_t first = row * size * size * 3;
    float* const input = pending.batch.images.mutable_data_ptr<float>() + first;
    Image picture;
    if (cut) picture = cut_picture(image, frame);
    if (recolored) {
      change_colors(config.augment, random, picture);
      write_input(picture, whole_picture(frame), config.preprocess, input);
    } else {
      write_input(image, frame, config.preprocess, input);
    }
    change_input(config.augment, random, size, input);
    if (config.views != "crop") {
      const at::Tensor& out =
          config.views == "both" ? pending.batch.segmented : pending.batch.images;
      segment_input(region_of(pending, index), images->mask_path(index), image.height, image.width,
                    frame, config.preprocess, input, out.mutable_data_ptr<float>() + first);
    }
    if (config.keep_pixels) pending.pictures[row] = std::move(picture);
  }
};

Loader::Loader(std::shared_ptr<const ImageList> images, std::shared_ptr<const LabelTable> labels,
               std::shared_ptr<const BatchSource> source, const LoaderConfig& config)
    : state_(std::make_unique<State>()) {
  const char* name = "Loader";
  TORCH_CHECK_VALUE(images != nullptr && source != nullptr, name,
                    ": images and source must be given, got none");
  check_images(name, *images);
  const int64_t count = images->size();
  if (labels) {
    check_labels(name, *labels);
    TORCH_CHECK_VALUE(labels->images() == count, name, ": labels must be of the same ", count,
                      " images, got ", labels->images());
  }
  TORCH_CHECK_VALUE(config.threads >= 1, name, ": threads must be positive, got ", config.threads);
  TORCH_CHECK_VALUE(config.prefetch >= 1, name, ": prefetch must be positive, got ",
                    config.prefetch);
  check_augment(name, config.augment);
  check_preprocess(name, config.preprocess);
  TORCH_CHECK_VALUE(config.views == "crop" || config.views == "segmented" || config.views == "both",
                    name, ": views must be 'crop', 'segmented' or 'both', got '", config.views,
                    "'");
  TORCH_CHECK_VALUE(config.views == "crop" || images->masks != nullptr, name,
                    ": views must be 'crop' of images without masks, got '", config.views, "'");
  if (images->resident) check_resident(name, *images, config.preprocess, config.augment);
  state_->images = std::move(images);
  if (labels) {
    state_->class_offsets = {0};
    for (const int64_t values : labels->values) {
      state_->class_offsets.push_back(state_->class_offsets.back() + values);
    }
  }
  state_->labels = std::move(labels);
  state_->source = std::move(source);
  state_->config = config;
  for (int64_t i = 0; i < config.threads; ++i) {
    state_->threads.emplace_back([state = state_.get()] { state->run(); });
  }
}

Loader::~Loader() = default;

void Loader::seek(int64_t step) {
  TORCH_CHECK_VALUE(step >= 0, "Loader: step must not be negative, got ", step);
  // Outlives the lock: giving up a tensor may wait for other locks.
  std::deque<std::shared_ptr<State::Pending>> dropped;
  const std::lock_guard<std::mutex> lock(state_->mutex);
  dropped.swap(state_->queue);
  state_->next_step = step;
  state_->work.notify_all();
}

Batch Loader::next() {
  std::shared_ptr<State::Pending> pending;
  {
    std::unique_lock<std::mutex> lock(state_->mutex);
    const auto start = Clock::now();
    const auto is_ready = [this] { return !state_->queue.empty() && state_->queue.front()->ready; };
    while (!state_->ready.wait_for(lock, std::chrono::milliseconds(50), is_ready)) {
      lock.unlock();
      interruption_point();
      lock.lock();
    }
    state_->waited += std::chrono::duration<double>(Clock::now() - start).count();
    pending = std::move(state_->queue.front());
    state_->queue.pop_front();
    state_->work.notify_all();
  }
  if (pending->error) std::rethrow_exception(pending->error);
  if (state_->images->resident) {
    make_on_device(*state_->images, pending->frames, state_->config.preprocess,
                   state_->config.keep_pixels, pending->batch);
  }
  return std::move(pending->batch);
}

std::map<int64_t, std::string> Loader::skipped() const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->skipped;
}

double Loader::waited() const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->waited;
}

}  // namespace placket
