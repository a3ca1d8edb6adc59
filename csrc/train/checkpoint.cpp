#include "train/checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <stdexcept>

namespace placket {
namespace {

namespace fs = std::filesystem;

// A rename is only safe from a power cut once the folder it happened in is flushed.
void flush_folder(const fs::path& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

void set_link(const fs::path& run, const std::string& name, const fs::path& target) {
  const fs::path link = run / name;
  fs::create_directories(link.parent_path());
  fs::path beside = link;
  beside += ".tmp";
  fs::remove(beside);
  fs::create_directory_symlink(fs::relative(target, link.parent_path()), beside);
  fs::rename(beside, link);
  flush_folder(link.parent_path());
}

void add_target(const fs::path& link, std::set<std::string>& names) {
  if (fs::is_symlink(link)) names.insert(fs::read_symlink(link).filename().string());
}

void remove_unlinked(const fs::path& run) {
  std::set<std::string> kept;
  add_target(run / "last", kept);
  add_target(run / "best", kept);
  if (fs::is_directory(run / "stages")) {
    for (const auto& entry : fs::directory_iterator(run / "stages")) add_target(entry.path(), kept);
  }
  std::vector<fs::path> unlinked;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints")) {
    if (!kept.contains(entry.path().filename().string())) unlinked.push_back(entry.path());
  }
  for (const fs::path& folder : unlinked) fs::remove_all(folder);
}

// A step may be saved twice, before and after its evaluation; what is linked is never written over.
fs::path free_name(const fs::path& folder, int64_t step) {
  char name[32];
  std::snprintf(name, sizeof name, "step_%08lld", static_cast<long long>(step));
  fs::path path = folder / name;
  for (int i = 2; fs::exists(path); ++i)
    path = folder / (std::string(name) + "-" + std::to_string(i));
  return path;
}

}  // namespace

void save_checkpoint(const std::string& run, int64_t step, const Checkpoint& checkpoint,
                     const std::vector<std::string>& links) {
  const fs::path folder = fs::path(run) / "checkpoints";
  fs::create_directories(folder);
  remove_unlinked(run);
  const fs::path target = free_name(folder, step);
  fs::path beside = target;
  beside += ".tmp";
  try {
    fs::create_directory(beside);
    write_tensor_file(beside / "model.safetensors", checkpoint.model);
    write_tensor_file(beside / "trainer.safetensors", checkpoint.trainer);
    write_text_file(beside / "config.json", checkpoint.config);
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(beside, ignored);
    throw;
  }
  fs::rename(beside, target);
  flush_folder(folder);
  for (const std::string& link : links) set_link(run, link, target);
  remove_unlinked(run);
}

void copy_link(const std::string& run, const std::string& from, const std::string& to) {
  set_link(run, to, fs::canonical(fs::path(run) / from));
}

Checkpoint load_checkpoint(const std::string& folder) {
  const fs::path path(folder);
  if (!fs::is_directory(path)) {
    throw std::runtime_error(folder + ": there is no checkpoint folder of this name");
  }
  std::ifstream in(path / "config.json");
  if (!in) throw std::runtime_error((path / "config.json").string() + ": cannot be opened");
  std::ostringstream config;
  config << in.rdbuf();
  return {read_tensor_file(path / "model.safetensors"),
          read_tensor_file(path / "trainer.safetensors"), config.str()};
}

}  // namespace placket
