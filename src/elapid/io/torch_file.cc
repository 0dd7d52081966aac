#include "elapid/io/torch_file.h"

#include "elapid/core/error.h"
#include "elapid/io/json.h"
#include "elapid/io/pickle.h"
#include "elapid/io/zip.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <functional>
#include <map>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace elapid {
namespace {

using Kind = PickleValue::Kind;

static_assert(std::endian::native == std::endian::little, "storages are little-endian, and used in place");

// The names that a file may mention, in the order of the enumeration.
enum class Name : uint8_t { rebuild_tensor, rebuild_tensor_v2, rebuild_tensor_v3, parameter, parameter_with_state };
constexpr std::array<std::string_view, 27> kNames = {
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    // Storages of the dtypes below, then the dtypes.
    "torch.DoubleStorage",
    "torch.FloatStorage",
    "torch.HalfStorage",
    "torch.BFloat16Storage",
    "torch.LongStorage",
    "torch.IntStorage",
    "torch.ByteStorage",
    "torch.CharStorage",
    "torch.BoolStorage",
    "torch.float64",
    "torch.float32",
    "torch.float16",
    "torch.bfloat16",
    "torch.int64",
    "torch.int32",
    "torch.uint8",
    "torch.int8",
    "torch.bool",
    "torch.UntypedStorage",
    "torch.storage.UntypedStorage",
    // Classes that only plain data mentions.
    "torch.Size",
    "torch.device",
};
constexpr std::array kDTypes = {DType::f64, DType::f32, DType::f16, DType::bf16,   DType::i64,
                                DType::i32, DType::u8,  DType::i8,  DType::boolean};
constexpr size_t kFirstStorage = 5, kFirstDType = kFirstStorage + kDTypes.size(),
                 kFirstUntyped = kFirstDType + kDTypes.size(), kFirstOther = kFirstUntyped + 2;

// Where a state dict may be inside of what was saved.
constexpr std::array<std::string_view, 4> kWrappers = {"state_dict", "model", "model_state_dict", "module"};
constexpr int kMaxWrappers = 4;

// long 0x1950a86a20f9469cfc6c
constexpr std::string_view kLegacyMagic("\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 10);
constexpr int64_t kLegacyVersion = 1001;
constexpr int64_t kCopyAlignment = 64;
// Views may share storages, as a tied head and blocks that take turns do; all together are at most so many files.
constexpr int64_t kMostViews = 16;

struct Storage {
  DType dtype = DType::u8;  // bytes when the storage has no type
  bool is_untyped = false;
  Bytes data;
};

struct View {
  DType dtype = DType::f32;
  Shape shape;
  std::array<int64_t, kMaxRank> strides{};
  const std::byte* data = nullptr;
  [[nodiscard]] Tensor dense() const { return {const_cast<std::byte*>(data), dtype, shape}; }
  [[nodiscard]] bool is_dense() const {
    Tensor tensor = dense();
    std::ranges::copy(strides, tensor.strides);
    return tensor.size() == 0 || tensor.dense();
  }
};

// Bytes of `elements` of a storage; an Error when no file could hold as many.
int64_t bytes_of(int64_t elements, DType dtype, const std::string& place) {
  int64_t bytes = 0;
  require(!__builtin_mul_overflow(elements, size_of(dtype), &bytes), place, ": its size must fit 63 bits, got ",
          elements, " elements");
  return bytes;
}

class TorchReader {
 public:
  TorchReader(Bytes bytes, std::string what, std::shared_ptr<const MappedFile> file)
      : bytes_(bytes), what_(std::move(what)), file_(std::move(file)) {}

  StoredTensors read() {
    if (begins_with("PK\x03\x04")) {
      open_zip();
    } else {
      require(begins_with("\x80"), what_, ": must be a file that torch.save wrote, got ",
              begins_with("ustar", 257) ? "the tar format of torch before 0.1.10" : "another beginning");
      open_legacy();
    }
    return read_tensors(state_dict());
  }

 private:
  [[nodiscard]] bool begins_with(std::string_view text, size_t at = 0) const {
    return bytes_.size() >= at + text.size() && std::memcmp(bytes_.data() + at, text.data(), text.size()) == 0;
  }
  [[nodiscard]] std::string place_of(std::string_view tensor) const {
    return concat(what_, ": tensor ", quote(tensor));
  }
  [[nodiscard]] std::span<const PickleValue> items(const PickleValue& value) const { return pickle_->items(value); }

  // ---- The two formats. Both leave the pickle in pickle_ and a way to find a storage's bytes by its key.

  void open_zip() {
    const ZipMembers members = read_stored_zip(bytes_, what_);
    constexpr std::string_view kPickle = "/data.pkl";
    std::string root;
    for (const auto& [name, data] : members) {
      // The name of the archive is the one folder that everything is in.
      if (!name.ends_with(kPickle) || name.find('/') != name.size() - kPickle.size()) continue;
      require(root.empty(), what_, ": must have one data.pkl, got two");
      root = name.substr(0, name.size() - kPickle.size());
    }
    const auto pickle = members.find(root + std::string(kPickle));
    require(pickle != members.end(), what_,
            ": must have a data.pkl as torch.save writes it, got a zip archive without");
    const auto order = members.find(root + "/byteorder");
    if (order != members.end()) {
      const std::string_view text(reinterpret_cast<const char*>(order->second.data()), order->second.size());
      if (text != "little") fail(concat(what_, ": byteorder must be \"little\", got ", quote(text)));
    }
    for (const auto& [name, data] : members) {
      const std::string prefix = root + "/data/";
      if (name.starts_with(prefix)) storages_.emplace(name.substr(prefix.size()), data);
    }
    pickle_ = std::make_unique<Pickle>(pickle->second, kNames, what_);
  }

  void open_legacy() {
    size_t at = 0;
    const auto next = [&] {
      auto pickle = std::make_unique<Pickle>(bytes_.subspan(at), kNames, what_);
      at += static_cast<size_t>(pickle->size());
      return pickle;
    };
    const auto magic = next();
    require(magic->root().kind == Kind::big_integer && magic->root().text == kLegacyMagic, what_,
            ": must begin with the number that torch.save writes first, got another pickle");
    const auto version = next();
    require(version->root().kind == Kind::integer && version->root().number == kLegacyVersion, what_,
            ": protocol version must be ", kLegacyVersion, ", got ", version->root());
    const auto system = next();
    require(system->root().kind == Kind::dict, what_, ": system info must be a dict, got ", system->root());
    const PickleValue* const is_little = find(*system, system->root(), "little_endian");
    require(is_little != nullptr && is_little->kind == Kind::boolean && is_little->number != 0, what_,
            ": must be little-endian, got another byte order");
    pickle_ = next();
    const auto keys = next();
    require(keys->root().kind == Kind::list, what_, ": storage keys must be a list, got ", keys->root());
    const std::map<std::string_view, int64_t> sizes = legacy_element_sizes();
    for (const PickleValue& key : keys->items(keys->root())) {
      require(key.kind == Kind::text, what_, ": storage keys must be texts, got ", key);
      const auto size = sizes.find(key.text);
      if (size == sizes.end()) fail(concat(what_, ": every storage must be used, got none for key ", quote(key.text)));
      int64_t elements = 0;
      require(bytes_.size() - at >= sizeof(elements), what_, ": must have every storage that it lists, got the end");
      std::memcpy(&elements, bytes_.data() + at, sizeof(elements));
      at += sizeof(elements);
      const auto left = static_cast<int64_t>(bytes_.size() - at);
      require(elements >= 0 && elements <= left / size->second, what_, ": a storage of ", elements, " elements of ",
              size->second, " bytes must be within the file, got ", left, " bytes");
      const auto bytes = static_cast<size_t>(elements * size->second);
      const bool is_new = storages_.emplace(key.text, bytes_.subspan(at, bytes)).second;
      if (!is_new) fail(concat(what_, ": a storage must be there once, got key ", quote(key.text), " twice"));
      at += bytes;
    }
  }

  // The file says a storage's size in elements, and only the pickle says of what type.
  [[nodiscard]] std::map<std::string_view, int64_t> legacy_element_sizes() const {
    std::map<std::string_view, int64_t> sizes;
    for (const PickleValue& value : pickle_->persistents()) {
      const StorageId id = parse_storage_id(value, what_);
      const auto known = sizes.emplace(id.key, size_of(id.dtype)).first;
      if (known->second == size_of(id.dtype)) continue;
      fail(concat(what_, ": a storage must have one type, got two for key ", quote(id.key)));
    }
    return sizes;
  }

  // ---- What the pickle says.

  // The value of a text key of a dict; null when it has none.
  static const PickleValue* find(const Pickle& pickle, const PickleValue& dict, std::string_view key) {
    const auto entries = pickle.items(dict);
    for (size_t i = 0; i + 1 < entries.size(); i += 2) {
      if (entries[i].kind == Kind::text && entries[i].text == key) return &entries[i + 1];
    }
    return nullptr;
  }

  [[nodiscard]] const PickleValue& state_dict() const {
    const PickleValue* dict = &pickle_->root();
    require(dict->kind == Kind::dict, what_, ": must hold a dict of tensors, got ", *dict);
    for (int depth = 0; depth <= kMaxWrappers; ++depth) {
      const PickleValue* inner = nullptr;
      for (const std::string_view wrapper : kWrappers) {
        const PickleValue* const found = inner == nullptr ? find(*pickle_, *dict, wrapper) : nullptr;
        if (found != nullptr && found->kind == Kind::dict) inner = found;
      }
      if (inner == nullptr) return *dict;
      dict = inner;
    }
    fail(concat(what_, ": a state dict must be at most ", kMaxWrappers, " dicts deep, got a deeper one"));
  }

  // Whether a call makes a tensor or a parameter.
  [[nodiscard]] bool is_tensor(const PickleValue& value) const {
    return value.kind == Kind::call && std::cmp_less(items(value)[0].number, kFirstStorage);
  }

  // No tensors, however deep; whatever was seen once need not be looked at again, also when it contains itself.
  void check_plain(const PickleValue& value, const PickleValue& key) {
    if (seen_.empty()) seen_.resize(static_cast<size_t>(pickle_->count_nodes()));
    std::vector<PickleValue> waiting = {value};
    while (!waiting.empty()) {
      const PickleValue next = waiting.back();
      waiting.pop_back();
      const bool is_plain_call = next.kind == Kind::call && std::cmp_greater_equal(items(next)[0].number, kFirstOther);
      if (next.kind == Kind::persistent || (next.kind == Kind::call && !is_plain_call)) {
        fail(concat(what_, ": entry ", key, " must be a tensor or plain data, got ", value, " with ",
                    is_tensor(next) ? "a tensor" : "a storage"));
      }
      if (!is_plain_call && next.kind != Kind::tuple && next.kind != Kind::list && next.kind != Kind::dict) continue;
      if (std::exchange(seen_[static_cast<size_t>(next.number)], 1) != 0) continue;
      const auto inner = items(next);
      waiting.insert(waiting.end(), inner.begin(), inner.end());
    }
  }

  StoredTensors read_tensors(const PickleValue& dict) {
    std::map<std::string_view, View> views;
    const auto entries = items(dict);
    for (size_t i = 0; i + 1 < entries.size(); i += 2) {
      const PickleValue &key = entries[i], &value = entries[i + 1];
      if (!is_tensor(value)) {
        check_plain(value, key);
        continue;
      }
      require(key.kind == Kind::text, what_, ": tensors must be named by texts, got ", key);
      const std::string place = place_of(key.text);
      require(views.emplace(key.text, parse_tensor(value, place)).second, place, ": must be there once, got it twice");
    }
    require(!views.empty() || entries.empty(), what_,
            ": must hold tensors, itself or under state_dict, model, model_state_dict or module, got none");
    return store(views);
  }

  // A call of a function that makes tensors, or of one that makes a parameter of a tensor.
  View parse_tensor(const PickleValue& value, const std::string& place) {
    PickleValue call = value;
    const auto function_of = [&] { return static_cast<Name>(items(call)[0].number); };
    if (function_of() == Name::parameter || function_of() == Name::parameter_with_state) {
      const auto arguments = items(items(call)[1]);
      require(!arguments.empty() && is_tensor(arguments[0]), place, ": a parameter must be of a tensor, got ",
              arguments.empty() ? PickleValue{} : arguments[0]);
      call = arguments[0];
    }
    const Name function = function_of();
    require(function <= Name::rebuild_tensor_v3, place, ": a parameter must be of a tensor, got one of a parameter");
    const auto arguments = items(items(call)[1]);
    // storage, offset, size, stride; requires_grad, hooks; the third form's dtype; metadata
    const size_t least = function == Name::rebuild_tensor ? 4 : function == Name::rebuild_tensor_v2 ? 6 : 7;
    const size_t most = function == Name::rebuild_tensor ? 4 : least + 1;
    require(arguments.size() >= least && arguments.size() <= most, place, ": must be made of ", least, " to ", most,
            " arguments, got ", arguments.size());
    if (arguments.size() > least) {
      const PickleValue& metadata = arguments[least];
      // What it may say otherwise: that the values are to be negated or conjugated.
      require(metadata.kind == Kind::none || (metadata.kind == Kind::dict && items(metadata).empty()), place,
              ": must be the storage's values as they are, got metadata");
    }

    Storage storage = find_storage(arguments[0], place);
    if (function == Name::rebuild_tensor_v3) {
      const PickleValue& dtype = arguments[6];
      require(dtype.kind == Kind::global && is_in(dtype.number, kFirstDType), place, ": must have a dtype, got ",
              dtype);
      storage.dtype = kDTypes[static_cast<size_t>(dtype.number) - kFirstDType];
    } else {
      require(!storage.is_untyped, place, ": its storage must have a type, got an untyped one");
    }
    return parse_view(storage, arguments, place);
  }

  static bool is_in(int64_t name, size_t first) {
    return std::cmp_greater_equal(name, first) && std::cmp_less(name, first + kDTypes.size());
  }

  struct StorageId {
    std::string_view key;
    DType dtype;
    bool is_untyped;
  };
  // ("storage", class, key, location, elements) and, in the legacy format, what part of it is meant
  StorageId parse_storage_id(const PickleValue& id, const std::string& place) const {
    const auto parts = items(id);
    require((parts.size() == 5 || parts.size() == 6) && parts[0].kind == Kind::text && parts[0].text == "storage",
            place, ": its storage must be named by (\"storage\", class, key, location, size), got another tuple");
    require(parts[1].kind == Kind::global && std::cmp_greater_equal(parts[1].number, kFirstStorage) &&
                std::cmp_less(parts[1].number, kFirstOther) && !is_in(parts[1].number, kFirstDType),
            place, ": its storage must be of a storage class, got ", parts[1]);
    require(parts[2].kind == Kind::text, place, ": its storage must have a text as key, got ", parts[2]);
    const bool is_untyped = !is_in(parts[1].number, kFirstStorage);
    return {.key = parts[2].text,
            .dtype = is_untyped ? DType::u8 : kDTypes[static_cast<size_t>(parts[1].number) - kFirstStorage],
            .is_untyped = is_untyped};
  }

  Storage find_storage(const PickleValue& id, const std::string& place) const {
    require(id.kind == Kind::persistent, place, ": must be a view of a storage, got ", id);
    const StorageId parsed = parse_storage_id(id, place);
    const auto found = storages_.find(parsed.key);
    if (found == storages_.end()) fail(concat(place, ": its storage must be in the file, got no ", quote(parsed.key)));
    Storage storage{.dtype = parsed.dtype, .is_untyped = parsed.is_untyped, .data = found->second};
    const auto parts = items(id);
    const int64_t elements = integer(parts[4], place, "its storage's size");
    require(bytes_of(elements, storage.dtype, place) == std::ssize(storage.data), place, ": its storage must have ",
            elements, " elements of ", size_of(storage.dtype), " bytes, got ", storage.data.size(), " bytes");
    if (parts.size() == 6 && parts[5].kind != Kind::none) {  // (key, first element, elements)
      require(parts[5].kind == Kind::tuple && items(parts[5]).size() == 3, place,
              ": a storage's part must be given by a tuple of three, got ", parts[5]);
      const int64_t first = integer(items(parts[5])[1], place, "its storage's first element"),
                    count = integer(items(parts[5])[2], place, "its storage's size");
      require(first <= elements && count <= elements - first, place, ": its storage must be within the ", elements,
              " elements of another, got ", count, " from ", first);
      storage.data = storage.data.subspan(static_cast<size_t>(first * size_of(storage.dtype)),
                                          static_cast<size_t>(count * size_of(storage.dtype)));
    }
    return storage;
  }

  static int64_t integer(const PickleValue& value, const std::string& place, std::string_view name) {
    require(value.kind == Kind::integer && value.number >= 0, place, ": ", name,
            " must be an integer of at least 0, got ", value);
    return value.number;
  }

  View parse_view(const Storage& storage, std::span<const PickleValue> arguments, const std::string& place) const {
    const int64_t offset = integer(arguments[1], place, "its offset");
    const PickleValue &size = arguments[2], &stride = arguments[3];
    require(size.kind == Kind::tuple && stride.kind == Kind::tuple && items(size).size() == items(stride).size(), place,
            ": its size and stride must be tuples of one length, got ", size, " and ", stride);
    require(items(size).size() <= kMaxRank, place, ": must have at most ", kMaxRank, " dimensions, got ",
            items(size).size());
    View view{.dtype = storage.dtype, .shape = {}, .strides = {}, .data = storage.data.data()};
    const int64_t elements = std::ssize(storage.data) / size_of(storage.dtype);
    int64_t count = 1, last = offset;  // the last element's place, when there are elements
    bool overflows = false, is_empty = false;
    for (size_t i = 0; i < items(size).size(); ++i) {
      const int64_t dim = integer(items(size)[i], place, "every dimension"),
                    step = integer(items(stride)[i], place, "every stride");
      view.shape.dims[view.shape.rank++] = dim;
      view.strides[i] = step;
      is_empty = is_empty || dim == 0;
      int64_t reach = 0;
      // Products of the other dimensions are strides even where one is 0.
      overflows = overflows || __builtin_mul_overflow(count, std::max<int64_t>(dim, 1), &count) ||
                  __builtin_mul_overflow(std::max<int64_t>(dim - 1, 0), step, &reach) ||
                  __builtin_add_overflow(last, reach, &last);
    }
    require(!overflows, place, ": must be within its storage, got sizes or strides beyond 63 bits");
    bytes_of(count, storage.dtype, place);
    if (is_empty) return view;
    require(last < elements, place, ": must be within its storage of ", elements, " elements, got one up to element ",
            last);
    view.data += offset * size_of(storage.dtype);
    return view;
  }

  // ---- Views of the file, and copies of what is not contiguous there.

  StoredTensors store(const std::map<std::string_view, View>& views) const {
    const auto limit = std::ssize(bytes_);
    int64_t total = 0, seen = 0;
    for (const auto& [name, view] : views) {
      const int64_t bytes = view.dense().bytes();
      if (view.is_dense()) {
        if (bytes > kMostViews * limit - seen) {
          fail(concat(place_of(name), ": tensors must together be no larger than ", kMostViews, " times the file (",
                      limit, " bytes), got more"));
        }
        seen += bytes;
        continue;
      }
      if (bytes > limit - total) {
        fail(concat(place_of(name), ": strided tensors must together be no larger than the file (", limit,
                    " bytes), got more"));
      }
      total += bytes;
    }
    int64_t used = 0, needed = 0;
    for (const auto& [name, view] : views) needed += view.is_dense() ? 0 : aligned(view.dense().bytes());
    const std::shared_ptr<const MappedFile> copies = needed == 0 ? nullptr : make_copies(needed);

    StoredTensors tensors;
    for (const auto& [name, view] : views) {
      Tensor tensor = view.dense();
      if (view.is_dense()) {
        tensors.emplace(name, StoredTensor{.tensor = tensor, .file = file_});
        continue;
      }
      tensor.data = const_cast<std::byte*>(copies->bytes().data()) + used;
      used += aligned(tensor.bytes());
      gather(view, tensor);
      tensors.emplace(name, StoredTensor{.tensor = tensor, .file = copies});
    }
    return tensors;
  }

  static int64_t aligned(int64_t bytes) { return (bytes + kCopyAlignment - 1) / kCopyAlignment * kCopyAlignment; }

  [[nodiscard]] std::shared_ptr<const MappedFile> make_copies(int64_t bytes) const {
    return MappedFile::from_memory(what_, Buffer(bytes), file_ ? file_->identity() : FileIdentity{});
  }

  static void gather(const View& view, const Tensor& to) {
    // Every tensor has four dimensions when the missing ones are 1.
    std::array<int64_t, kMaxRank> dims{1, 1, 1, 1}, strides{};
    const auto missing = static_cast<size_t>(kMaxRank - view.shape.rank);
    for (size_t i = missing; i < kMaxRank; ++i) {
      dims[i] = view.shape.dims[i - missing];
      strides[i] = view.strides[i - missing];
    }
    const auto size = static_cast<size_t>(size_of(view.dtype));
    auto* out = static_cast<std::byte*>(to.data);
    for (int64_t a = 0; a < dims[0]; ++a) {
      for (int64_t b = 0; b < dims[1]; ++b) {
        for (int64_t c = 0; c < dims[2]; ++c) {
          const int64_t begin = a * strides[0] + b * strides[1] + c * strides[2];
          for (int64_t d = 0; d < dims[3]; ++d, out += size) {
            std::memcpy(out, view.data + (begin + d * strides[3]) * static_cast<int64_t>(size), size);
          }
        }
      }
    }
  }

  Bytes bytes_;
  std::string what_;
  std::shared_ptr<const MappedFile> file_;
  std::unique_ptr<Pickle> pickle_;
  std::map<std::string, Bytes, std::less<>> storages_;  // by key
  std::vector<uint8_t> seen_;                           // nodes of the pickle without tensors
};

}  // namespace

StoredTensors read_torch_file(const std::filesystem::path& path) {
  const std::shared_ptr<const MappedFile> file = MappedFile::open(path);
  return TorchReader(file->bytes(), path.string(), file).read();
}

StoredTensors parse_torch_file(Bytes bytes, const std::string& what) {
  return TorchReader(bytes, what, nullptr).read();
}

}  // namespace elapid
