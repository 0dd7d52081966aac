#include "elapid/io/pickle.h"

#include "elapid/core/error.h"
#include "elapid/io/json.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <iomanip>
#include <optional>
#include <ostream>

namespace elapid {
namespace {

using Kind = PickleValue::Kind;

// A tensor costs about 35 operations and 150 bytes: these are tens of thousands of tensors in one file.
constexpr int64_t kMaxOperations = 2'000'000;
constexpr int64_t kMaxSize = int64_t{64} << 20;
constexpr size_t kMaxMarks = 256;
constexpr int kMinProtocol = 2, kMaxProtocol = 5;
constexpr std::string_view kOrderedDict = "collections.OrderedDict";
constexpr int64_t kOrderedDictIndex = -1;

// The operations, by their names in Python's pickletools.
enum class Op : uint8_t {
  mark = '(',
  stop = '.',
  pop = '0',
  pop_mark = '1',
  binfloat = 'G',
  binint = 'J',
  binint1 = 'K',
  binint2 = 'M',
  none = 'N',
  binpersid = 'Q',
  reduce = 'R',
  binstring = 'T',
  short_binstring = 'U',
  binunicode = 'X',
  append = 'a',
  build = 'b',
  global = 'c',
  appends = 'e',
  binget = 'h',
  long_binget = 'j',
  binput = 'q',
  long_binput = 'r',
  setitem = 's',
  tuple = 't',
  setitems = 'u',
  binbytes = 'B',
  short_binbytes = 'C',
  empty_list = ']',
  empty_tuple = ')',
  empty_dict = '}',
  proto = 0x80,
  tuple1 = 0x85,
  tuple2 = 0x86,
  tuple3 = 0x87,
  newtrue = 0x88,
  newfalse = 0x89,
  long1 = 0x8a,
  long4 = 0x8b,
  short_binunicode = 0x8c,
  binunicode8 = 0x8d,
  binbytes8 = 0x8e,
  stack_global = 0x93,
  memoize = 0x94,
  frame = 0x95,
};

}  // namespace

class PickleMachine {
 public:
  PickleMachine(Pickle& pickle, Bytes bytes, std::span<const std::string_view> globals, const std::string& what)
      : pickle_(pickle),
        bytes_(bytes.first(std::min(bytes.size(), static_cast<size_t>(kMaxSize)))),
        is_cut_(bytes_.size() < bytes.size()),
        globals_(globals),
        what_(what) {}

  void run() {
    check(read_op() == static_cast<uint8_t>(Op::proto), "must begin with its protocol, got another operation");
    const auto protocol = read_number<uint8_t>();
    check(protocol >= kMinProtocol && protocol <= kMaxProtocol, "protocol must be from ", kMinProtocol, " to ",
          kMaxProtocol, ", got ", int{protocol});
    while (step(read_op())) charge(1);
  }

 private:
  // Errors name the byte at which the operation begins.
  template <class... Parts>
  void check(Condition condition, const Parts&... parts) const {
    if (condition.holds) [[likely]] {
      return;
    }
    throw Error(concat(what_, ": pickle, byte ", at_op_, ": ", concat(parts...)), condition.where);
  }

  // Pays for what an operation makes.
  void charge(int64_t count) {
    operations_ += count;
    check(operations_ <= kMaxOperations, "must have at most ", kMaxOperations, " operations, got more");
  }

  std::string_view read(uint64_t size) {
    const size_t left = bytes_.size() - at_;
    if (size > left) {
      check(!is_cut_, "must have at most ", kMaxSize, " bytes, got more");
      check(false, "must go on for ", size, " bytes, got only ", left);
    }
    const std::string_view text(reinterpret_cast<const char*>(bytes_.data()) + at_, static_cast<size_t>(size));
    at_ += text.size();
    return text;
  }
  template <class T>
  T read_number() {
    T value{};
    std::memcpy(&value, read(sizeof(T)).data(), sizeof(T));
    return value;
  }
  template <class Length>
  std::string_view read_counted() {
    return read(read_number<Length>());
  }
  uint8_t read_op() {
    at_op_ = at_;
    return read_number<uint8_t>();
  }
  std::string_view read_line() {
    const auto* const begin = reinterpret_cast<const char*>(bytes_.data()) + at_;
    const void* const end = at_ < bytes_.size() ? std::memchr(begin, '\n', bytes_.size() - at_) : nullptr;
    check(end != nullptr, "a name must end with a newline, got none");
    const std::string_view line = read(static_cast<uint64_t>(static_cast<const char*>(end) - begin));
    read(1);
    return line;
  }

  void push(const PickleValue& value) { stack_.push_back(value); }
  void push_number(Kind kind, int64_t number) { push({kind, number, {}}); }
  void push_text(Kind kind, std::string_view text) { push({kind, 0, text}); }
  void push_long(std::string_view digits) {
    if (digits.size() > sizeof(int64_t)) return push_text(Kind::big_integer, digits);
    const bool is_negative = !digits.empty() && (static_cast<uint8_t>(digits.back()) & 0x80u) != 0;
    int64_t value = is_negative ? -1 : 0;
    std::memcpy(&value, digits.data(), digits.size());
    push_number(Kind::integer, value);
  }
  // Things above the latest mark only: an operation must not reach below it.
  void check_stack(size_t count) const {
    const size_t floor = marks_.empty() ? 0 : marks_.back();
    check(stack_.size() - floor >= count, "must find ", count, " values, got ", stack_.size() - floor);
  }
  PickleValue pop() {
    check_stack(1);
    const PickleValue value = stack_.back();
    stack_.pop_back();
    return value;
  }
  const PickleValue& top() const {
    check_stack(1);
    return stack_.back();
  }
  // Takes what was pushed since the latest mark.
  std::vector<PickleValue> pop_to_mark() {
    check(!marks_.empty(), "must follow a mark, got none");
    const auto begin = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
    std::vector<PickleValue> values(begin, stack_.end());
    stack_.erase(begin, stack_.end());
    marks_.pop_back();
    return values;
  }

  std::vector<PickleValue>& node(const PickleValue& value) { return pickle_.nodes_[static_cast<size_t>(value.number)]; }
  PickleValue make_node(Kind kind, std::vector<PickleValue> items) {
    pickle_.nodes_.push_back(std::move(items));
    return {kind, std::ssize(pickle_.nodes_) - 1, {}};
  }
  void push_tuple(size_t count) {
    check_stack(count);
    const auto begin = stack_.end() - static_cast<std::ptrdiff_t>(count);
    std::vector<PickleValue> items(begin, stack_.end());
    stack_.erase(begin, stack_.end());
    push(make_node(Kind::tuple, std::move(items)));
  }
  void extend(Kind kind, const std::vector<PickleValue>& values) {
    const PickleValue& container = top();
    check(container.kind == kind, "must add to a ", kind == Kind::list ? "list" : "dict", ", got ", container);
    check(kind == Kind::list || values.size() % 2 == 0, "a dict's keys must have values, got an odd number of both");
    std::vector<PickleValue>& items = node(container);
    items.insert(items.end(), values.begin(), values.end());
  }

  void push_global(std::string_view module, std::string_view name) {
    const std::string full = concat(module, '.', name);
    if (full == kOrderedDict) return push_number(Kind::global, kOrderedDictIndex);
    const auto known = std::ranges::find(globals_, full);
    if (known == globals_.end()) check(false, "must name only what tensors are made of, got ", quote(full));
    push_number(Kind::global, known - globals_.begin());
  }
  void reduce() {
    const PickleValue arguments = pop(), function = pop();
    check(arguments.kind == Kind::tuple, "a call's arguments must be a tuple, got ", arguments);
    check(function.kind == Kind::global, "a call must be of a name, got ", function);
    push(function.number == kOrderedDictIndex ? make_ordered_dict(arguments)
                                              : make_node(Kind::call, {function, arguments}));
  }
  // OrderedDict() or, from Python 2, OrderedDict([[key, value], …]).
  PickleValue make_ordered_dict(const PickleValue& arguments) {
    const size_t count = node(arguments).size();
    if (count == 0) return make_node(Kind::dict, {});
    check(count == 1 && node(arguments)[0].kind == Kind::list, "OrderedDict's argument must be a list");
    const std::vector<PickleValue>& pairs = node(node(arguments)[0]);
    charge(std::ssize(pairs));  // one list may be the argument of many calls
    std::vector<PickleValue> items;
    for (const PickleValue& pair : pairs) {
      check((pair.kind == Kind::list || pair.kind == Kind::tuple) && node(pair).size() == 2,
            "OrderedDict's argument must be a list of pairs");
      items.insert(items.end(), node(pair).begin(), node(pair).end());
    }
    return make_node(Kind::dict, std::move(items));
  }

  // Python 3 numbers its memo from 0 on, Python 2's cPickle from 1, and what nobody gets may have been left out.
  // Numbers that are passed over are paid for.
  void put(uint64_t index) {
    if (index >= memo_.size()) {
      charge(static_cast<int64_t>(index - memo_.size()));
      memo_.resize(index + 1);
    }
    memo_size_ += memo_[index] ? 0 : 1;
    memo_[index] = top();
  }
  void get(uint64_t index) {
    check(index < memo_.size() && memo_[index], "memo index must be one that was put, got ", index);
    push(*memo_[index]);
  }

  // The class that an operation of the text protocol names in two lines: " of \"os.system\"", or nothing.
  [[nodiscard]] std::string named_by(uint8_t code) const {
    constexpr uint8_t kInst = 'i';
    const std::string_view rest(reinterpret_cast<const char*>(bytes_.data()) + at_, bytes_.size() - at_);
    const size_t module = rest.find('\n'),
                 name = module == std::string_view::npos ? module : rest.find('\n', module + 1);
    if (code != kInst || name == std::string_view::npos) return "";
    return concat(" of ", quote(concat(rest.substr(0, module), '.', rest.substr(module + 1, name - module - 1))));
  }

  // One operation; false when it was the last one.
  bool step(uint8_t code) {  // NOLINT(readability-function-size): a table
    switch (static_cast<Op>(code)) {
      case Op::stop:
        pickle_.root_ = pop();
        check(stack_.empty() && marks_.empty(), "must end with one value, got more");
        pickle_.size_ = static_cast<int64_t>(at_);
        return false;
      case Op::frame: {  // a hint for readers of streams
        const auto size = read_number<uint64_t>();
        check(size <= bytes_.size() - at_ || is_cut_, "a frame must have at most the ", bytes_.size() - at_,
              " bytes that are left, got ", size);
        break;
      }
      case Op::mark:
        check(marks_.size() < kMaxMarks, "must be nested at most ", kMaxMarks, " deep, got more");
        marks_.push_back(stack_.size());
        break;
      case Op::pop: pop(); break;
      case Op::pop_mark: pop_to_mark(); break;

      case Op::none: push_number(Kind::none, 0); break;
      case Op::newtrue: push_number(Kind::boolean, 1); break;
      case Op::newfalse: push_number(Kind::boolean, 0); break;
      case Op::binint: push_number(Kind::integer, read_number<int32_t>()); break;
      case Op::binint1: push_number(Kind::integer, read_number<uint8_t>()); break;
      case Op::binint2: push_number(Kind::integer, read_number<uint16_t>()); break;
      case Op::long1: push_long(read_counted<uint8_t>()); break;
      case Op::long4: push_long(read_counted<uint32_t>()); break;
      case Op::binfloat:
        read(sizeof(double));
        push_number(Kind::real, 0);
        break;
      // Python 2 wrote its str, which names are, with the first two.
      case Op::binstring: push_text(Kind::text, read_counted<uint32_t>()); break;
      case Op::short_binstring: push_text(Kind::text, read_counted<uint8_t>()); break;
      case Op::short_binunicode: push_text(Kind::text, read_counted<uint8_t>()); break;
      case Op::binunicode: push_text(Kind::text, read_counted<uint32_t>()); break;
      case Op::binunicode8: push_text(Kind::text, read_counted<uint64_t>()); break;
      case Op::short_binbytes: push_text(Kind::bytes, read_counted<uint8_t>()); break;
      case Op::binbytes: push_text(Kind::bytes, read_counted<uint32_t>()); break;
      case Op::binbytes8: push_text(Kind::bytes, read_counted<uint64_t>()); break;

      case Op::empty_tuple: push_tuple(0); break;
      case Op::tuple1: push_tuple(1); break;
      case Op::tuple2: push_tuple(2); break;
      case Op::tuple3: push_tuple(3); break;
      case Op::tuple: push(make_node(Kind::tuple, pop_to_mark())); break;
      case Op::empty_list: push(make_node(Kind::list, {})); break;
      case Op::append: extend(Kind::list, {pop()}); break;
      case Op::appends: extend(Kind::list, pop_to_mark()); break;
      case Op::empty_dict: push(make_node(Kind::dict, {})); break;
      case Op::setitem: {
        const PickleValue value = pop(), key = pop();
        extend(Kind::dict, {key, value});
        break;
      }
      case Op::setitems: extend(Kind::dict, pop_to_mark()); break;

      case Op::binput: put(read_number<uint8_t>()); break;
      case Op::long_binput: put(read_number<uint32_t>()); break;
      case Op::memoize: put(memo_size_); break;
      case Op::binget: get(read_number<uint8_t>()); break;
      case Op::long_binget: get(read_number<uint32_t>()); break;

      case Op::global: {
        const std::string_view module = read_line();
        push_global(module, read_line());
        break;
      }
      case Op::stack_global: {
        const PickleValue name = pop(), module = pop();
        check(name.kind == Kind::text && module.kind == Kind::text, "a global must be named by two texts, got ", module,
              " and ", name);
        push_global(module.text, name.text);
        break;
      }
      case Op::reduce: reduce(); break;
      case Op::binpersid: {
        const PickleValue id = pop();
        check(id.kind == Kind::tuple, "a persistent id must be a tuple, got ", id);
        push_number(Kind::persistent, id.number);
        pickle_.persistents_.push_back(top());
        break;
      }
      case Op::build: {  // attributes, of which a state dict's _metadata (versions of modules) is the usual one
        pop();
        check(top().kind == Kind::dict, "attributes must be those of an OrderedDict, got ", top());
        break;
      }
      default: {
        std::ostringstream hex;
        hex << "0x" << std::hex << std::setfill('0') << std::setw(2) << int{code};
        check(false, "operations must be those that torch.save writes, got ", hex.str(), named_by(code));
      }
    }
    return true;
  }

  Pickle& pickle_;
  Bytes bytes_;
  bool is_cut_;  // there are more bytes than a pickle may have
  std::span<const std::string_view> globals_;
  const std::string& what_;
  size_t at_ = 0, at_op_ = 0;
  int64_t operations_ = 0;
  std::vector<PickleValue> stack_;
  std::vector<std::optional<PickleValue>> memo_;
  uint64_t memo_size_ = 0;     // without the gaps
  std::vector<size_t> marks_;  // sizes of the stack
};

Pickle::Pickle(Bytes bytes, std::span<const std::string_view> globals, const std::string& what) {
  PickleMachine(*this, bytes, globals, what).run();
}

std::span<const PickleValue> Pickle::items(const PickleValue& value) const {
  assert(value.kind == Kind::tuple || value.kind == Kind::list || value.kind == Kind::dict ||
         value.kind == Kind::call || value.kind == Kind::persistent);
  return nodes_[static_cast<size_t>(value.number)];
}

std::ostream& operator<<(std::ostream& out, const PickleValue& value) {
  switch (value.kind) {
    case Kind::none: return out << "None";
    case Kind::boolean: return out << (value.number != 0 ? "True" : "False");
    case Kind::integer: return out << value.number;
    case Kind::big_integer: return out << "an integer of more than 64 bits";
    case Kind::real: return out << "a float";
    case Kind::text: return out << quote(value.text);
    case Kind::bytes: return out << "bytes";
    case Kind::tuple: return out << "a tuple";
    case Kind::list: return out << "a list";
    case Kind::dict: return out << "a dict";
    case Kind::global: return out << "a name";
    case Kind::call: return out << "an object";
    case Kind::persistent: return out << "a storage";
  }
  return out;
}

}  // namespace elapid
