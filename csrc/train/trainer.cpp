#include "train/trainer.h"

#include <ATen/ATen.h>
#include <ATen/core/Generator.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <map>

#include "base/interrupt.h"
#include "base/random.h"
#include "train/autocast.h"

namespace placket {

using at::Tensor;

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr const char* kFormat = "placket-trainer/1";
constexpr int64_t kNamedFiles = 16;  // of a batch, in the message about a loss that is not finite

// Seeds torch's default generators for a scope, so that dropout is a function of the step; what
// they would have given outside stays as it was.
class SeedGuard {
 public:
  SeedGuard(at::Device device, uint64_t seed) {
    add(at::globalContext().defaultGenerator(at::kCPU), seed);
    if (!device.is_cpu()) add(at::globalContext().defaultGenerator(device), seed);
  }
  ~SeedGuard() {
    for (auto& [generator, state] : saved_) generator.set_state(state);
  }
  SeedGuard(const SeedGuard&) = delete;
  SeedGuard& operator=(const SeedGuard&) = delete;

 private:
  void add(at::Generator generator, uint64_t seed) {
    saved_.emplace_back(generator, generator.get_state());
    generator.set_current_seed(seed);
  }

  std::vector<std::pair<at::Generator, Tensor>> saved_;
};

// Puts the running statistics back when a step ends by an exception.
class BufferGuard {
 public:
  explicit BufferGuard(const NamedTensors& buffers) {
    for (const auto& [name, buffer] : buffers) saved_.emplace_back(buffer, buffer.clone());
  }
  ~BufferGuard() {
    const at::NoGradGuard no_grad;
    for (auto& [buffer, value] : saved_) buffer.copy_(value);
  }
  void keep() { saved_.clear(); }
  BufferGuard(const BufferGuard&) = delete;
  BufferGuard& operator=(const BufferGuard&) = delete;

 private:
  std::vector<std::pair<Tensor, Tensor>> saved_;
};

uint64_t random_seed(uint64_t seed, RandomPurpose purpose, uint64_t a, uint32_t b = 0) {
  RandomStream random(seed, purpose, a, b);
  const uint64_t high = random.next();
  return (high << 32) | random.next();
}

std::string text_of(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

const std::string& entry(const std::map<std::string, std::string>& metadata, const char* key) {
  const auto found = metadata.find(key);
  TORCH_CHECK_VALUE(found != metadata.end(), "Trainer: state must have an entry '", key,
                    "', got none: it is not a state of this trainer");
  return found->second;
}

template <class T>
T number(const std::map<std::string, std::string>& metadata, const char* key) {
  const std::string& text = entry(metadata, key);
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  TORCH_CHECK_VALUE(error == std::errc() && end == text.data() + text.size(), "Trainer: state's '",
                    key, "' must be a number, got '", text, "'");
  return value;
}

using Copies = std::vector<std::pair<Tensor, Tensor>>;  // to, from

// Plans to copy the saved tensors into the trainer's own, which must be the same by name and shape.
void plan_copies(const NamedTensors& own, const std::map<std::string, Tensor>& saved,
                 Copies& copies) {
  for (const auto& [name, tensor] : own) {
    const auto found = saved.find(name);
    TORCH_CHECK_VALUE(found != saved.end(), "Trainer: state has no tensor '", name,
                      "': it is of another model or stage");
    TORCH_CHECK_VALUE(found->second.sizes() == tensor.sizes() &&
                          found->second.scalar_type() == tensor.scalar_type(),
                      "Trainer: state's '", name, "' must be ", tensor.scalar_type(), " ",
                      tensor.sizes(), ", got ", found->second.scalar_type(), " ",
                      found->second.sizes());
    copies.emplace_back(tensor, found->second);
  }
}

std::map<std::string, Tensor> by_name(const NamedTensors& tensors) {
  return {tensors.begin(), tensors.end()};
}

void check_no_other(const NamedTensors& saved, const std::map<std::string, Tensor>& known) {
  for (const auto& [name, tensor] : saved) {
    TORCH_CHECK_VALUE(known.contains(name), "Trainer: state has a tensor '", name,
                      "' that this stage does not: it is of another model or stage");
  }
}

NamedTensors join(NamedTensors first, const NamedTensors& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

// The weight of a loss at a step of the stage.
double weight_at(const StageConfig& stage, const std::string& loss, double weight, int64_t step,
                 int64_t steps_per_epoch) {
  for (const auto& [name, epochs] : stage.ramp_epochs) {
    if (name == loss) weight *= std::min(1.0, double(step) / (epochs * double(steps_per_epoch)));
  }
  return weight;
}

void check_ramps(const StageConfig& stage) {
  std::vector<std::string> losses;
  for (const auto& [name, weight] : stage.losses) losses.push_back(name);
  for (const auto& [name, epochs] : stage.ramp_epochs) {
    check_known("stage: ramp_epochs", name, losses);
    TORCH_CHECK_VALUE(epochs > 0, "stage: ramp_epochs of '", name, "' must be positive, got ",
                      epochs);
  }
}

std::unique_ptr<BatchSource> make_single_source(const TrainerConfig& config, const GradSync& sync,
                                                const std::shared_ptr<const ImageList>& images,
                                                const std::shared_ptr<const LabelTable>& labels,
                                                uint64_t seed) {
  const StageConfig& stage = config.stage;
  if (stage.sampler == "triplets") {
    return make_triplet_source(labels, {.seed = seed,
                                        .batch = stage.batch,
                                        .triplets = stage.triplets,
                                        .negative_by_value = stage.negative_by_value,
                                        .exclude_shared = stage.exclude_shared,
                                        .rank = sync.rank(),
                                        .world_size = sync.world_size()});
  }
  if (stage.sampler == "classes" || stage.sampler == "products") {
    TORCH_CHECK_VALUE(stage.batch % stage.images_of_class == 0,
                      "stage: batch must be a multiple of images_of_class ", stage.images_of_class,
                      ", got ", stage.batch);
    const bool products = stage.sampler == "products";
    const auto attributes = int64_t(labels->values.size());
    return make_class_source(labels, {.seed = seed,
                                      .classes = stage.batch / stage.images_of_class,
                                      .images_of_class = stage.images_of_class,
                                      .attribute = products ? attributes - 2 : -1,
                                      .balance = products ? attributes - 1 : -1,
                                      .rank = sync.rank(),
                                      .world_size = sync.world_size()});
  }
  return make_image_source(images->size(), {seed, stage.batch, /*shuffle=*/true, /*drop_last=*/true,
                                            sync.rank(), sync.world_size()});
}

std::shared_ptr<const BatchSource> make_source(const TrainerConfig& config, const GradSync& sync,
                                               const std::shared_ptr<const ImageList>& images,
                                               const std::shared_ptr<const LabelTable>& labels,
                                               uint64_t seed) {
  return make_copied_source(make_single_source(config, sync, images, labels, seed),
                            config.stage.copies);
}

Adam make_adam(System& system, const StageConfig& stage) {
  const NamedTensors learning = system.begin(stage);
  TORCH_CHECK_VALUE(!learning.empty(), "Trainer: rates must let at least one parameter learn");
  std::vector<AdamGroup> groups;
  auto by_rate = rate_groups(stage.rates, learning, system.parameters());
  for (size_t i = 0; i < by_rate.size(); ++i) {
    auto& [rate, parameters] = by_rate[i];
    const std::string& prefix = stage.rates[i].first;
    if (parameters.empty()) continue;
    groups.push_back({prefix.empty() ? "all" : prefix, rate, std::move(parameters)});
  }
  AdamConfig adam;
  adam.weight_decay = stage.weight_decay;
  adam.decoupled = stage.decoupled_decay;
  return {std::move(groups), adam};
}

}  // namespace

uint64_t stage_seed(uint64_t seed, int64_t stage_index) {
  return random_seed(seed, kRandomSampler, uint64_t(stage_index), /*b=*/1);
}

uint64_t step_seed(uint64_t seed, int64_t step, int64_t rank) {
  return random_seed(seed, kRandomDropout, uint64_t(step), uint32_t(rank));
}

struct Trainer::Progress {
  Clock::time_point last_poll{};  // the epoch: the first poll is due at once
  double seconds = 0;             // of training since the last report
  int64_t images = 0;             // in them
  double waited = 0;              // for the loader, up to the last report
};

Trainer::~Trainer() = default;

Trainer::Trainer(std::shared_ptr<System> system, std::shared_ptr<const ImageList> images,
                 std::shared_ptr<const LabelTable> labels, std::optional<EvaluationSet> evaluation,
                 const TrainerConfig& config, Hooks hooks, GradSync sync)
    : system_(std::move(system)),
      images_(std::move(images)),
      evaluation_(std::move(evaluation)),
      config_(config),
      hooks_(std::move(hooks)),
      sync_(std::move(sync)),
      device_(system_->device()),
      progress_(std::make_unique<Progress>()) {
  const StageConfig& stage = config_.stage;
  TORCH_CHECK_VALUE(stage.epochs > 0, "Trainer: epochs must be at least 1, got ", stage.epochs);
  TORCH_CHECK_VALUE(config_.report_every > 0, "Trainer: report_every must be at least 1 step, got ",
                    config_.report_every);
  TORCH_CHECK_VALUE(config_.evaluate_every >= 0 && config_.checkpoint_every >= 0,
                    "Trainer: evaluate_every and checkpoint_every must be at least 0 steps, got ",
                    config_.evaluate_every, " and ", config_.checkpoint_every);
  TORCH_CHECK_VALUE(config_.evaluate_every == 0 || evaluation_,
                    "Trainer: evaluate_every must be 0 without an evaluation set, got ",
                    config_.evaluate_every);
  check_ramps(stage);
  if (device_.is_cpu()) host_memory_.emplace();
  adam_ = std::make_unique<Adam>(make_adam(*system_, stage));
  const uint64_t seed = stage_seed(config_.seed, config_.stage_index);
  source_ = make_source(config_, sync_, images_, labels, seed);
  steps_ = stage.epochs * source_->steps_per_epoch();
  rate_factor(stage.schedule, 0, source_->steps_per_epoch(), steps_);  // checks it
  LoaderConfig loader;
  loader.preprocess = config_.preprocess;
  loader.preprocess.size = stage.size.value_or(config_.preprocess.size);
  loader.augment = stage.augment;
  loader.seed = seed;
  loader.keep_pixels = system_->needs_pixels();
  loader.views = config_.views;
  loader.threads = config_.loader_threads;
  loader.skip_unreadable = config_.skip_unreadable;
  loader.pin_memory = device_.is_cuda();
  loader_ = std::make_unique<Loader>(images_, std::move(labels), source_, loader);
  window_ = at::zeros({config_.report_every, int64_t(stage.losses.size()) + 1},
                      at::dtype(at::kFloat).device(device_));
  bad_ = at::zeros({}, at::dtype(at::kFloat).device(device_));
}

int64_t Trainer::steps_per_epoch() const { return source_->steps_per_epoch(); }

int64_t Trainer::epoch() const {
  return std::max<int64_t>(step_ - 1, 0) / source_->steps_per_epoch();
}

std::vector<std::pair<std::string, double>> Trainer::step() {
  settle();
  TORCH_CHECK_VALUE(step_ < steps_, "Trainer: step must be called at most ", steps_,
                    " times in this stage, which is done");
  take_step();
  const Tensor row = window_[window_size_ - 1].cpu();
  return losses_of(row.to(at::kDouble));
}

// The losses' values by name from a row of them.
std::vector<std::pair<std::string, double>> Trainer::losses_of(const Tensor& row) const {
  const double* values = row.const_data_ptr<double>();
  std::vector<std::pair<std::string, double>> losses;
  for (const auto& [name, weight] : config_.stage.losses) losses.emplace_back(name, *values++);
  return losses;
}

void Trainer::run(std::optional<int64_t> steps) {
  TORCH_CHECK_VALUE(!steps || *steps >= 0, "Trainer: steps must be at least 0, got ",
                    steps.value_or(0));
  const int64_t end = steps ? std::min(steps_, step_ + *steps) : steps_;
  settle();
  while (step_ < end) {
    poll();
    take_step();
    settle();
  }
}

void Trainer::take_step() {
  const Clock::time_point start = Clock::now();
  // Steps on other devices are short, and there a copy of the buffers would tell.
  const InterruptionScope interruption(device_.is_cpu() ? [this] { poll(); }
                                                        : std::function<void()>());
  if (loader_moved_) loader_->seek(step_);
  loader_moved_ = true;
  const Batch batch = loader_->next();
  {
    const SeedGuard seeded(device_,
                           step_seed(config_.seed, config_.first_step + step_, sync_.rank()));
    BufferGuard buffers(device_.is_cpu() ? system_->buffers() : NamedTensors());
    const at::AutoGradMode with_grad(true);
    adam_->zero_grad();
    std::vector<Tensor> row;  // in the order of the stage's losses, then their weighted sum
    Tensor total;
    {
      const AutocastGuard autocast(device_.type(), config_.bfloat16);
      const std::vector<Loss> losses =
          system_->losses(batch, {config_.seed, config_.first_step + step_, sync_});
      for (const auto& [name, weight] : config_.stage.losses) {
        const auto found = std::find_if(losses.begin(), losses.end(),
                                        [&n = name](const Loss& loss) { return loss.name == n; });
        TORCH_INTERNAL_ASSERT(found != losses.end());
        row.push_back(found->value.detach().to(at::kFloat));
        const Tensor weighted = found->value * weight_at(config_.stage, name, weight, step_,
                                                         source_->steps_per_epoch());
        total = total.defined() ? total + weighted : weighted;
      }
    }
    row.push_back(total.detach().to(at::kFloat));
    const Tensor values = at::stack(row);
    sync_.average({values});
    window_[window_size_].copy_(values);
    if (device_.is_cpu()) {
      check_finite(values.unsqueeze(0), step_);
    } else {
      const at::NoGradGuard no_grad;
      bad_.copy_(at::maximum(bad_, values.isfinite().all().logical_not().to(at::kFloat)));
    }
    total.backward();
    buffers.keep();
  }
  if (sync_.world_size() > 1) {
    std::vector<Tensor> shared;
    for (const Tensor& parameter : adam_->parameters()) {
      if (parameter.grad().defined()) shared.push_back(parameter.grad());
    }
    for (const auto& [name, buffer] : system_->buffers()) {
      if (buffer.is_floating_point()) shared.push_back(buffer);
    }
    sync_.average(shared);
  }
  const double factor =
      rate_factor(config_.stage.schedule, step_, source_->steps_per_epoch(), steps_);
  adam_->step(factor, device_.is_cpu() ? std::nullopt : std::optional(bad_));
  system_->stepped();
  adam_->zero_grad();
  ++step_;
  ++window_size_;
  loader_moved_ = false;
  progress_->images += batch.images.size(0) * sync_.world_size();
  progress_->seconds += seconds_since(start);
}

// `window`: rows of losses of the steps from `first`, on the CPU.
void Trainer::check_finite(const Tensor& window, int64_t first) const {
  const Tensor finite = window.isfinite();
  if (finite.all().item<bool>()) return;
  const auto values = window.accessor<float, 2>();
  const auto rows = finite.accessor<bool, 2>();
  for (int64_t i = 0; i < window.size(0); ++i) {
    for (int64_t j = 0; j < window.size(1); ++j) {
      if (rows[i][j]) continue;
      const auto& losses = config_.stage.losses;
      const std::string name =
          j < int64_t(losses.size()) ? losses[size_t(j)].first : "the weighted sum";
      const BatchPlan plan = source_->plan(first + i);
      const int64_t count = int64_t(plan.images.size());
      std::string files;
      for (int64_t k = 0; k < std::min(count, kNamedFiles); ++k) {
        files += (k > 0 ? ", " : "") + images_->path(plan.images[size_t(k)]);
      }
      if (count > kNamedFiles) files += " and " + std::to_string(count - kNamedFiles) + " more";
      TORCH_CHECK(false, "Trainer: loss ", name, " must be finite, got ", values[i][j], " at step ",
                  config_.first_step + first + i + 1, " of the run; its batch: ", files,
                  ". Lower the learning rate or look at these images; the weights are those before "
                  "that step");
    }
  }
}

bool Trainer::report_due() const {
  return window_size_ == config_.report_every || (window_size_ > 0 && step_ == steps_);
}

bool Trainer::evaluation_due() const {
  return config_.evaluate_every > 0 && step_ > 0 && evaluated_ != step_ &&
         (step_ == steps_ || step_ % config_.evaluate_every == 0);
}

bool Trainer::checkpoint_due() const {
  if (config_.run.empty() || step_ == 0 || saved_ == step_) return false;
  return step_ == steps_ || evaluated_ == step_ ||
         (config_.checkpoint_every > 0 && step_ % config_.checkpoint_every == 0);
}

bool Trainer::settled() const { return !report_due() && !evaluation_due() && !checkpoint_due(); }

// Does what is due at this step; what a hook's exception leaves undone is done by the next call.
void Trainer::settle() {
  if (report_due()) report();
  if (evaluation_due()) evaluate();
  if (!checkpoint_due()) return;
  // Without evaluations the last is the best.
  const bool best = best_step_ == step_ || config_.evaluate_every == 0;
  const std::string stage = "stages/" + config_.stage.name;
  std::vector<std::string> links;
  if (best) links.push_back("best");
  if (best && step_ == steps_) links.push_back(stage);
  if (!best && step_ == steps_ && sync_.rank() == 0) copy_link(config_.run, "best", stage);
  // Comes last: whoever resumes from it finds the others done.
  links.push_back("last");
  save(links);
}

void Trainer::report() {
  const Clock::time_point start = Clock::now();
  const Tensor window = window_.narrow(0, 0, window_size_).cpu();  // waits for the device
  progress_->seconds += seconds_since(start);
  check_finite(window, step_ - window_size_);
  const Tensor means = window.to(at::kDouble).mean(0);

  Report report;
  report.step = config_.first_step + step_;
  report.epoch = epoch();
  report.losses = losses_of(means);
  report.loss = means[-1].item<double>();
  const double factor =
      rate_factor(config_.stage.schedule, step_ - 1, source_->steps_per_epoch(), steps_);
  for (const AdamGroup& group : adam_->groups()) {
    report.rates.emplace_back(group.name, group.rate * factor);
  }
  const double seconds = std::max(progress_->seconds, 1e-9);
  report.images_per_second = double(progress_->images) / seconds;
  report.data_wait = (loader_->waited() - progress_->waited) / seconds;
  progress_->seconds = 0;
  progress_->images = 0;
  progress_->waited = loader_->waited();
  window_size_ = 0;
  if (hooks_.report) hooks_.report(report);
}

Evaluation Trainer::evaluate() {
  TORCH_CHECK_VALUE(evaluation_, "Trainer: evaluate needs an evaluation set, got none");
  EncodeOptions options;
  options.preprocess = config_.preprocess;
  options.views = config_.views;
  options.threads = config_.loader_threads;
  options.bfloat16 = config_.bfloat16;
  const EvaluationScores scores =
      placket::evaluate(*system_, *evaluation_, options, [this] { poll(); });
  Evaluation result{config_.first_step + step_, epoch(), scores.per_attribute, scores.overall,
                    !best_ || scores.overall > *best_};
  evaluated_ = step_;
  saved_ = -1;  // a checkpoint of this step does not know the evaluation
  if (result.best) {
    best_ = scores.overall;
    best_step_ = step_;
  }
  if (hooks_.evaluated) hooks_.evaluated(result);
  return result;
}

void Trainer::poll() {
  if (!hooks_.poll) return;
  const Clock::time_point now = Clock::now();
  if (now - progress_->last_poll < std::chrono::milliseconds(config_.poll_milliseconds)) return;
  progress_->last_poll = now;
  hooks_.poll();
}

Checkpoint Trainer::state() const {
  Checkpoint state;
  const NamedTensors training_only = system_->training_only();
  const std::map<std::string, Tensor> unsaved = by_name(training_only);
  for (const auto& named : join(system_->parameters(), system_->buffers())) {
    if (!unsaved.contains(named.first)) state.model.tensors.push_back(named);
  }
  state.model.metadata = {{"format", "pt"}};
  state.trainer.tensors = join(adam_->state(), training_only);
  state.trainer.tensors.emplace_back("losses", window_.narrow(0, 0, window_size_));
  state.trainer.metadata = {
      {"format", kFormat},
      {"stage", config_.stage.name},
      {"stage_index", std::to_string(config_.stage_index)},
      {"seed", std::to_string(config_.seed)},
      {"first_step", std::to_string(config_.first_step)},
      {"step", std::to_string(step_)},
      {"evaluated", std::to_string(evaluated_)},
      {"best_step", std::to_string(best_step_)},
      {"best", best_ ? text_of(*best_) : ""},
  };
  state.config = config_.model_config;
  return state;
}

void Trainer::load_state(const Checkpoint& state) {
  const auto& metadata = state.trainer.metadata;
  const std::map<std::string, std::string> expected = {
      {"format", kFormat},
      {"stage", config_.stage.name},
      {"stage_index", std::to_string(config_.stage_index)},
      {"seed", std::to_string(config_.seed)},
      {"first_step", std::to_string(config_.first_step)}};
  for (const auto& [key, value] : expected) {
    const std::string& found = entry(metadata, key.c_str());
    TORCH_CHECK_VALUE(found == value, "Trainer: state's ", key, " must be ", value, ", got ",
                      found);
  }
  const int64_t step = number<int64_t>(metadata, "step");
  TORCH_CHECK_VALUE(step >= 0 && step <= steps_, "Trainer: state's step must be from 0 to ", steps_,
                    ", got ", step);
  const int64_t evaluated = number<int64_t>(metadata, "evaluated");
  const int64_t best_step = number<int64_t>(metadata, "best_step");
  std::optional<double> best;
  if (!entry(metadata, "best").empty()) best = number<double>(metadata, "best");

  const Checkpoint own = this->state();
  const std::map<std::string, Tensor> saved = by_name(state.trainer.tensors);
  Copies copies;
  plan_copies(own.model.tensors, by_name(state.model.tensors), copies);
  check_no_other(state.model.tensors, by_name(own.model.tensors));
  plan_copies(join(adam_->state(), system_->training_only()), saved, copies);
  check_no_other(state.trainer.tensors, by_name(own.trainer.tensors));
  const auto window = saved.find("losses");
  TORCH_CHECK_VALUE(window != saved.end(), "Trainer: state has no tensor 'losses'");
  const Tensor losses = window->second;
  TORCH_CHECK_VALUE(losses.dim() == 2 && losses.size(1) == window_.size(1),
                    "Trainer: state's "
                    "'losses' must have shape [steps, ",
                    window_.size(1), "], got ", losses.sizes());
  // A longer window than this trainer's is of another report_every: its reports start afresh.
  const int64_t kept = losses.size(0) <= config_.report_every ? losses.size(0) : 0;
  copies.emplace_back(window_.narrow(0, 0, kept), losses.narrow(0, 0, kept));

  const at::NoGradGuard no_grad;
  for (auto& [to, from] : copies) to.copy_(from);
  bad_.zero_();
  step_ = step;
  saved_ = step;
  evaluated_ = evaluated;
  best_step_ = best_step;
  best_ = best;
  window_size_ = kept;
  loader_moved_ = true;
}

void Trainer::save(const std::vector<std::string>& links) {
  TORCH_CHECK_VALUE(!config_.run.empty(), "Trainer: save needs a run folder, got none");
  if (sync_.rank() == 0) save_checkpoint(config_.run, config_.first_step + step_, state(), links);
  saved_ = step_;
}

}  // namespace placket
