#include "data/image_list.h"

#include <c10/util/Exception.h>

#include <stdexcept>
#include <utility>

#include "data/resident.h"

namespace placket {

std::string ImageList::path(int64_t image) const {
  return root + "/" + std::string((*filenames)[image]);
}

LoadedImage ImageList::load(int64_t image, Orientation orientation, const PartOf& part) const {
  if (store == nullptr) return decode_file(path(image), orientation, part);
  const int64_t record = records[image];
  const StoreRecord& about = store->record(record);
  if (store->kind() == StoreKind::kFiles) {
    return decode_bytes(store->bytes(record), about.length, path(image), orientation, part);
  }
  if ((store->kind() == StoreKind::kUprightPixels) != (orientation == Orientation::kApply)) {
    const bool upright = orientation == Orientation::kApply;
    throw std::runtime_error(path(image) + ": orientation of the preprocessing must be '" +
                             (upright ? "ignore" : "apply") + "', with which the pixels were " +
                             "packed, got '" + (upright ? "apply" : "ignore") + "'");
  }
  if (part) part(about.height, about.width);
  return LoadedImage(ImageView(about.height, about.width, store->bytes(record)));
}

std::string ImageList::mask_path(int64_t image) const {
  return root + "/" + std::string((*masks->filenames)[image]);
}

ImageList ImageList::select(const std::vector<int64_t>& images) const {
  ImageList chosen{.root = root,
                   .filenames = nullptr,
                   .store = store,
                   .records = {},
                   .boxes = {},
                   .masks = nullptr,
                   .resident = resident};
  auto names = std::make_shared<TextColumn>();
  for (const int64_t image : images) {
    names->append((*filenames)[image]);
    if (store != nullptr) chosen.records.push_back(records[image]);
    if (!boxes.empty()) chosen.boxes.push_back(boxes[image]);
  }
  chosen.filenames = std::move(names);
  if (masks != nullptr) {
    auto files = std::make_shared<TextColumn>();
    MaskColumn kept{.filenames = nullptr, .numbers = {}, .bits = masks->bits};
    for (const int64_t image : images) {
      files->append((*masks->filenames)[image]);
      kept.numbers.push_back(masks->numbers[image]);
    }
    kept.filenames = std::move(files);
    chosen.masks = std::make_shared<const MaskColumn>(std::move(kept));
  }
  return chosen;
}

void check_images(const char* user, const ImageList& images) {
  const auto count = size_t(images.size());
  TORCH_CHECK_VALUE(images.boxes.empty() || images.boxes.size() == count, user,
                    ": boxes must be none or one for each of ", count, " images, got ",
                    images.boxes.size());
  if (images.masks != nullptr) {
    check_masks(user, *images.masks);
    TORCH_CHECK_VALUE(size_t(images.masks->size()) == count, user,
                      ": masks must be none or one for each of ", count, " images, got ",
                      images.masks->size());
    TORCH_CHECK_VALUE(images.store == nullptr, user,
                      ": masks must be of loose files, got images of the store ",
                      images.store->path());
  }
  TORCH_CHECK_VALUE(images.resident == nullptr || images.resident->store == images.store, user,
                    ": resident must be the pixels of the images' store ",
                    images.store == nullptr ? "none" : images.store->path(), ", got those of ",
                    images.resident->store->path());
  if (images.store == nullptr) return;
  TORCH_CHECK_VALUE(images.records.size() == count, user, ": records must be one for each of ",
                    count, " images, got ", images.records.size());
  for (const int64_t record : images.records) {
    TORCH_CHECK_VALUE(record >= 0 && record < images.store->size(), user,
                      ": records must be in [0, ", images.store->size(), "), got ", record);
  }
}

}  // namespace placket
