#include "bindings/train.h"

#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "bindings/gil.h"
#include "train/systems/attribute.h"
#include "train/systems/product.h"
#include "train/systems/region_text.h"
#include "train/trainer.h"

namespace placket {

namespace py = pybind11;

namespace {

using ProcessGroup = c10::intrusive_ptr<c10d::ProcessGroup>;

// `call` under the GIL, its exceptions unchanged; none for None.
template <class T>
std::function<void(const T&)> callback(py::object call) {
  if (call.is_none()) return {};
  return [held = hold(std::move(call))](const T& argument) {
    const py::gil_scoped_acquire gil;
    (*held)(argument);
  };
}

ExtraLosses extra_losses(const std::map<std::string, py::object>& calls) {
  ExtraLosses losses;
  for (const auto& [name, call] : calls) {
    losses[name] = [held = hold(call), name = name](const at::Tensor& embeddings,
                                                    const at::Tensor& labels) {
      const py::gil_scoped_acquire gil;
      const py::object value = (*held)(embeddings, labels);
      TORCH_CHECK_TYPE(THPVariable_Check(value.ptr()), "stage: loss '", name,
                       "' must return a tensor, got ", Py_TYPE(value.ptr())->tp_name);
      return value.cast<at::Tensor>();
    };
  }
  return losses;
}

template <class T>
py::dict to_dict(const std::vector<std::pair<std::string, T>>& items) {
  py::dict out;
  for (const auto& [name, value] : items) out[py::str(name)] = value;
  return out;
}

// The state as it is now: the trainer's own tensors go on changing.
Checkpoint snapshot(const Trainer& trainer) {
  Checkpoint state = trainer.state();
  for (TensorFile* file : {&state.model, &state.trainer}) {
    for (auto& [name, tensor] : file->tensors) tensor = tensor.detach().clone();
  }
  return state;
}

EvaluationList make_list(std::vector<int64_t> images, std::vector<int64_t> attributes,
                         std::vector<int64_t> values) {
  TORCH_CHECK_VALUE(images.size() == attributes.size() && images.size() == values.size(),
                    "EvaluationSet: images, attributes and values must have the same length, got ",
                    images.size(), ", ", attributes.size(), " and ", values.size());
  return {std::move(images), std::move(attributes), std::move(values)};
}

using Rows = std::tuple<std::vector<int64_t>, std::vector<int64_t>, std::vector<int64_t>>;

void bind_configs(py::module_& m) {
  py::class_<Schedule>(m, "Schedule")
      .def(py::init<>())
      .def_readwrite("kind", &Schedule::kind)
      .def_readwrite("factor", &Schedule::factor)
      .def_readwrite("every", &Schedule::every)
      .def_readwrite("milestones", &Schedule::milestones)
      .def_readwrite("warmup_steps", &Schedule::warmup_steps)
      .def_readwrite("warmup_epochs", &Schedule::warmup_epochs);
  m.def("rate_factor", &rate_factor, py::arg("schedule"), py::arg("step"),
        py::arg("steps_per_epoch"), py::arg("steps"));

  py::class_<StageConfig>(m, "StageConfig")
      .def(py::init<>())
      .def_readwrite("name", &StageConfig::name)
      .def_readwrite("branches", &StageConfig::branches)
      .def_readwrite("losses", &StageConfig::losses)
      .def_readwrite("ramp_epochs", &StageConfig::ramp_epochs)
      .def_readwrite("rates", &StageConfig::rates)
      .def_readwrite("schedule", &StageConfig::schedule)
      .def_readwrite("weight_decay", &StageConfig::weight_decay)
      .def_readwrite("decoupled_decay", &StageConfig::decoupled_decay)
      .def_readwrite("epochs", &StageConfig::epochs)
      .def_readwrite("batch_norm", &StageConfig::batch_norm)
      .def_readwrite("sampler", &StageConfig::sampler)
      .def_readwrite("batch", &StageConfig::batch)
      .def_readwrite("triplets", &StageConfig::triplets)
      .def_readwrite("images_of_class", &StageConfig::images_of_class)
      .def_readwrite("copies", &StageConfig::copies)
      .def_readwrite("negative_by_value", &StageConfig::negative_by_value)
      .def_readwrite("exclude_shared", &StageConfig::exclude_shared)
      .def_readwrite("views_per_image", &StageConfig::views_per_image)
      .def_readwrite("new_attributes", &StageConfig::new_attributes)
      .def_readwrite("recompute", &StageConfig::recompute)
      .def_readwrite("size", &StageConfig::size)
      .def_readwrite("augment", &StageConfig::augment);

  py::class_<TrainerConfig>(m, "TrainerConfig")
      .def(py::init<>())
      .def_readwrite("stage", &TrainerConfig::stage)
      .def_readwrite("stage_index", &TrainerConfig::stage_index)
      .def_readwrite("first_step", &TrainerConfig::first_step)
      .def_readwrite("seed", &TrainerConfig::seed)
      .def_readwrite("bfloat16", &TrainerConfig::bfloat16)
      .def_readwrite("preprocess", &TrainerConfig::preprocess)
      .def_readwrite("loader_threads", &TrainerConfig::loader_threads)
      .def_readwrite("views", &TrainerConfig::views)
      .def_readwrite("skip_unreadable", &TrainerConfig::skip_unreadable)
      .def_readwrite("report_every", &TrainerConfig::report_every)
      .def_readwrite("evaluate_every", &TrainerConfig::evaluate_every)
      .def_readwrite("checkpoint_every", &TrainerConfig::checkpoint_every)
      .def_readwrite("poll_milliseconds", &TrainerConfig::poll_milliseconds)
      .def_readwrite("run", &TrainerConfig::run)
      .def_readwrite("model_config", &TrainerConfig::model_config);

  py::class_<AttributeOptions>(m, "AttributeOptions")
      .def(py::init<>())
      .def_readwrite("margin", &AttributeOptions::margin)
      .def_readwrite("temperature", &AttributeOptions::temperature)
      .def_readwrite("alpha", &AttributeOptions::alpha)
      .def_readwrite("contrast_temperature", &AttributeOptions::contrast_temperature)
      .def_readwrite("classify_scale", &AttributeOptions::classify_scale)
      .def_readwrite("align_margin", &AttributeOptions::align_margin)
      .def_readwrite("positive_weight", &AttributeOptions::positive_weight)
      .def_readwrite("centre_momentum", &AttributeOptions::centre_momentum)
      .def_readwrite("centre_temperature", &AttributeOptions::centre_temperature)
      .def_readwrite("pseudo_confidence", &AttributeOptions::pseudo_confidence)
      .def_readwrite("region_weight", &AttributeOptions::region_weight)
      .def_readwrite("box_threshold", &AttributeOptions::box_threshold)
      .def_readwrite("patch_size", &AttributeOptions::patch_size);

  py::class_<ProductOptions>(m, "ProductOptions")
      .def(py::init<>())
      .def_readwrite("margin", &ProductOptions::margin)
      .def_readwrite("soft_margin", &ProductOptions::soft_margin)
      .def_readwrite("label_smoothing", &ProductOptions::label_smoothing)
      .def_readwrite("centre_rate", &ProductOptions::centre_rate)
      .def_readwrite("positive_weight", &ProductOptions::positive_weight);
}

void bind_systems(py::module_& m) {
  py::class_<System, std::shared_ptr<System>>(m, "System")
      .def("parameters", [](const System& system) { return to_dict(system.parameters()); })
      .def("buffers", [](const System& system) { return to_dict(system.buffers()); })
      .def("begin_encoding", &System::begin_encoding, py::arg("branches"));

  m.def(
      "attribute_system",
      [](const NetworkConfig& config, const AttributeOptions& options,
         const std::map<std::string, at::Tensor>& tensors, const std::vector<int64_t>& values,
         const Preprocess& preprocess, uint64_t seed,
         const std::map<std::string, py::object>& extra) {
        return std::shared_ptr<System>(make_attribute_system(
            config, options, tensors, values, preprocess, seed, extra_losses(extra)));
      },
      py::arg("config"), py::arg("options"), py::arg("tensors"), py::arg("values"),
      py::arg("preprocess"), py::arg("seed") = 0,
      py::arg("extra_losses") = std::map<std::string, py::object>());

  m.def(
      "product_system",
      [](const std::string& trunk, const std::string& head, int64_t products, int64_t domains,
         const ProductOptions& options, const std::map<std::string, at::Tensor>& tensors,
         const std::vector<int64_t>& values, uint64_t seed) {
        return std::shared_ptr<System>(
            make_product_system({trunk, head, products, domains}, options, tensors, values, seed));
      },
      py::arg("trunk"), py::arg("head"), py::arg("products"), py::arg("domains"),
      py::arg("options"), py::arg("tensors"), py::arg("values"), py::arg("seed") = 0);

  m.def(
      "region_text_system",
      [](const std::string& image, const std::string& text, int64_t category,
         const std::map<std::string, at::Tensor>& tensors, const std::vector<int64_t>& values,
         const at::Tensor& prompts, const at::Tensor& prompt_rows) {
        return std::shared_ptr<System>(make_region_text_system({image, text, category}, tensors,
                                                               values, {prompts, prompt_rows}));
      },
      py::kw_only(), py::arg("image"), py::arg("text"), py::arg("category"), py::arg("tensors"),
      py::arg("values"), py::arg("prompts"), py::arg("prompt_rows"));

  m.def(
      "encode_rows",
      [](const std::shared_ptr<System>& system, const std::shared_ptr<ImageList>& images,
         const std::vector<int64_t>& rows, const std::vector<int64_t>& attributes,
         const Preprocess& preprocess, const std::string& views, int64_t batch, int64_t threads,
         bool bfloat16) {
        TORCH_CHECK_VALUE(rows.size() == attributes.size(),
                          "encode_rows: rows and attributes must have the same length, got ",
                          rows.size(), " and ", attributes.size());
        const py::gil_scoped_release no_gil;
        return encode_rows(*system, images, rows, attributes,
                           {preprocess, views, batch, threads, bfloat16}, &check_signals);
      },
      py::arg("system"), py::arg("images"), py::arg("rows"), py::arg("attributes"), py::kw_only(),
      py::arg("preprocess"), py::arg("views") = "crop", py::arg("batch") = 64,
      py::arg("threads") = 2, py::arg("bfloat16") = false);
}

void bind_trainer(py::module_& m) {
  m.def("stage_seed", &stage_seed, py::arg("seed"), py::arg("stage_index"));
  m.def("step_seed", &step_seed, py::arg("seed"), py::arg("step"), py::arg("rank"));

  py::class_<Report>(m, "Report")
      .def_readonly("step", &Report::step)
      .def_readonly("epoch", &Report::epoch)
      .def_property_readonly("losses", [](const Report& r) { return to_dict(r.losses); })
      .def_readonly("loss", &Report::loss)
      .def_property_readonly("rates", [](const Report& r) { return to_dict(r.rates); })
      .def_readonly("images_per_second", &Report::images_per_second)
      .def_readonly("data_wait", &Report::data_wait);

  py::class_<Evaluation>(m, "Evaluation")
      .def_readonly("step", &Evaluation::step)
      .def_readonly("epoch", &Evaluation::epoch)
      .def_readonly("per_attribute", &Evaluation::per_attribute)
      .def_readonly("overall", &Evaluation::overall)
      .def_readonly("best", &Evaluation::best);

  py::class_<EvaluationSet>(m, "EvaluationSet")
      .def(py::init([](const std::shared_ptr<ImageList>& images, Rows queries, Rows candidates,
                       int64_t attributes) {
             return EvaluationSet{images, std::apply(make_list, std::move(queries)),
                                  std::apply(make_list, std::move(candidates)), attributes};
           }),
           py::arg("images"), py::arg("queries"), py::arg("candidates"), py::arg("attributes"));

  py::class_<Checkpoint>(m, "Checkpoint")
      .def_static("load", &load_checkpoint, py::arg("folder"))
      .def_property_readonly("model", [](const Checkpoint& c) { return to_dict(c.model.tensors); })
      .def_property_readonly("trainer",
                             [](const Checkpoint& c) { return to_dict(c.trainer.tensors); })
      .def_property_readonly("metadata", [](const Checkpoint& c) { return c.trainer.metadata; })
      .def_readonly("config", &Checkpoint::config);

  py::class_<Trainer, std::unique_ptr<Trainer, WithoutGil>>(m, "Trainer")
      .def(py::init([](std::shared_ptr<System> system, const std::shared_ptr<ImageList>& images,
                       const std::shared_ptr<LabelTable>& labels,
                       std::optional<EvaluationSet> evaluation, const TrainerConfig& config,
                       py::object report, py::object evaluated,
                       const std::optional<ProcessGroup>& group) {
             Hooks hooks = {&check_signals, callback<Report>(std::move(report)),
                            callback<Evaluation>(std::move(evaluated))};
             return std::unique_ptr<Trainer, WithoutGil>(
                 new Trainer(std::move(system), images, labels, std::move(evaluation), config,
                             std::move(hooks), group ? GradSync(*group) : GradSync()));
           }),
           py::arg("system"), py::arg("images"), py::arg("labels"), py::arg("evaluation"),
           py::arg("config"), py::kw_only(), py::arg("report") = py::none(),
           py::arg("evaluated") = py::none(), py::arg("process_group") = py::none())
      .def("step",
           [](Trainer& trainer) {
             std::vector<std::pair<std::string, double>> losses;
             {
               const py::gil_scoped_release no_gil;
               losses = trainer.step();
             }
             return to_dict(losses);
           })
      .def("run", &Trainer::run, py::arg("steps") = py::none(),
           py::call_guard<py::gil_scoped_release>())
      .def("evaluate", &Trainer::evaluate, py::call_guard<py::gil_scoped_release>())
      .def("state", &snapshot, py::call_guard<py::gil_scoped_release>())
      .def("load_state", &Trainer::load_state, py::arg("state"),
           py::call_guard<py::gil_scoped_release>())
      .def("save", py::overload_cast<>(&Trainer::save), py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("steps_done", &Trainer::steps_done)
      .def_property_readonly("steps", &Trainer::steps)
      .def_property_readonly("steps_per_epoch", &Trainer::steps_per_epoch)
      .def_property_readonly("done", &Trainer::done)
      .def_property_readonly("best", &Trainer::best)
      .def_property_readonly("skipped", &Trainer::skipped);
}

}  // namespace

void bind_train(py::module_& m) {
  bind_configs(m);
  bind_systems(m);
  bind_trainer(m);
}

}  // namespace placket
