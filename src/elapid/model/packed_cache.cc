#include "elapid/model/packed_cache.h"

#include "elapid/core/error.h"
#include "elapid/core/hash.h"
#include "elapid/model/fingerprint.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <system_error>
#include <utility>

namespace elapid {
namespace {

namespace fs = std::filesystem;

// To be raised whenever the same weights are packed into other bytes: another order, another rounding, another
// transformation of a parameter.
constexpr uint32_t kVersion = 1;
constexpr char kMagic[8] = {'E', 'L', 'A', 'P', 'A', 'C', 'K', '\0'};
constexpr size_t kHashDigits = 32;

// A page, so that weights begin at one.
struct Header {
  char magic[8];
  uint32_t version, header_bytes;
  int64_t bytes;              // of the weights
  char key[kHashDigits];      // what they were made from
  char weights[kHashDigits];  // their hash
  char header[kHashDigits];   // hash of everything before
  char unused[4096 - 24 - 3 * kHashDigits];
};
static_assert(sizeof(Header) == 4096);

void copy_hash(char (&to)[kHashDigits], const std::string& hash) { std::memcpy(to, hash.data(), kHashDigits); }

std::string hash_of(Bytes bytes) {
  Hash hash;
  hash.add(bytes.data(), bytes.size());
  return hash.hex();
}

std::string hash_of_weights(const MappedFile* file, Bytes weights) {
  Hash hash;
  add_mapped(hash, file, weights);
  return hash.hex();
}

std::string hash_of_header(const Header& header) {
  return hash_of(std::as_bytes(std::span(&header, 1)).first(offsetof(Header, header)));
}

Header header_of(const std::string& key, Bytes weights) {
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.header_bytes = sizeof header;
  header.bytes = std::ssize(weights);
  copy_hash(header.key, key);
  copy_hash(header.weights, hash_of_weights(nullptr, weights));
  copy_hash(header.header, hash_of_header(header));
  return header;
}

bool holds(const MappedFile& file, const std::string& key, int64_t bytes) {
  if (file.bytes().size() < sizeof(Header)) return false;
  Header header;
  std::memcpy(&header, file.bytes().data(), sizeof header);
  const auto is = [](const char(&field)[kHashDigits], const std::string& hash) {
    return std::memcmp(field, hash.data(), kHashDigits) == 0;
  };
  return std::memcmp(header.magic, kMagic, sizeof kMagic) == 0 && header.version == kVersion &&
         header.header_bytes == sizeof header && header.bytes == bytes && is(header.key, key) &&
         is(header.header, hash_of_header(header)) && std::cmp_equal(file.bytes().size() - sizeof header, bytes);
}

}  // namespace

PackedCache::PackedCache(fs::path folder, const Checkpoint& checkpoint, std::optional<Precision> precision)
    : folder_(std::move(folder)) {
  source_ = concat("version ", kVersion, "\nprecision ", precision ? name_of(*precision) : "auto", '\n');
  for (const auto& [name, entry] : checkpoint.entries()) {
    const Tensor& t = entry.tensor;
    source_ += concat(name.size(), ' ', name, ' ', name_of(t.dtype));
    for (int i = 0; i < t.shape.rank; ++i) source_ += concat(i == 0 ? " [" : ", ", t.shape[i]);
    if (entry.file) {
      const FileIdentity& file = entry.file->identity();
      source_ += concat("] at ", static_cast<const std::byte*>(t.data) - entry.file->bytes().data(), " of ",
                        file.device, ' ', file.inode, ' ', file.size, ' ', file.modified);
    }
    source_ += '\n';
  }
}

std::string PackedCache::key_of(const std::string& layout) const {
  Hash hash;
  hash.add(source_);
  hash.add(layout);
  return hash.hex();
}

fs::path PackedCache::path_of(const std::string& layout) const { return folder_ / (key_of(layout) + ".elapid-packed"); }

ModelBuilder::Packed PackedCache::find(const std::string& layout, int64_t bytes, bool verify) const {
  std::shared_ptr<const MappedFile> file;
  try {
    file = MappedFile::open(path_of(layout));
  } catch (const Error&) {  // there is none, or something that cannot be read
    return {};
  }
  if (!holds(*file, key_of(layout), bytes)) return {};
  const Bytes weights = file->bytes().subspan(sizeof(Header));
  const auto* stated = reinterpret_cast<const char*>(file->bytes().data()) + offsetof(Header, weights);
  if (verify && hash_of_weights(file.get(), weights) != std::string(stated, kHashDigits)) return {};
  return {file, weights.data()};
}

void PackedCache::keep(const std::string& layout, Bytes weights) const {
  std::error_code error;
  fs::create_directories(folder_, error);
  const fs::path path = path_of(layout);
  require(!error, folder_.string(), ": must be a folder that can be written to, got: ", error.message());
  const fs::file_status there = fs::status(path, error);
  require(!fs::exists(there) || fs::is_regular_file(there), path.string(),
          ": must be a regular file, got another kind");
  AtomicFile file(path);
  const Header header = header_of(key_of(layout), weights);
  file.write(std::as_bytes(std::span(&header, 1)));
  file.write(weights);
  file.commit();
}

}  // namespace elapid
