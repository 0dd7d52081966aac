#include "elapid/io/file.h"

#include "tests/io/support.h"

#include <array>
#include <fcntl.h>
#include <filesystem>
#include <gtest/gtest.h>
#include <stdexcept>
#include <string>
#include <string_view>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

namespace elapid {
namespace {

namespace fs = std::filesystem;

std::string_view text_of(Bytes bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

// Everything that cannot be read, with the words that say so.
void expect_unreadable_refused(void (*read)(const fs::path&)) {
  const ScratchFolder folder;
  const auto refuse = [&](std::string_view name, std::string_view reason) {
    SCOPED_TRACE(name);
    expect_error([&] { read(folder / name); }, {(folder / name).string(), "must be a readable regular file", reason});
  };
  refuse("missing", "No such file or directory");

  fs::create_directory(folder / "folder");
  refuse("folder", "a directory");

  fs::create_symlink("loop2", folder / "loop1");
  fs::create_symlink("loop1", folder / "loop2");
  refuse("loop1", "symbolic links");

  fs::create_symlink("nowhere", folder / "dangling");
  refuse("dangling", "No such file or directory");

  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  refuse("pipe", "a pipe");  // and does not wait for a writer

  folder.write("file", "x");
  refuse("file/below", "Not a directory");
  refuse(std::string(300, 'n'), "File name too long");

  expect_error([&] { read("/dev/null"); }, {"/dev/null", "a device"});
  expect_error([&] { read(""); }, {"must be a readable regular file"});
  if (::geteuid() != 0) {  // root may read everything
    fs::permissions(folder.write("secret", "x"), fs::perms::none);
    refuse("secret", "Permission denied");
  }
}

TEST(MappedFile, ShowsTheContents) {
  const ScratchFolder folder;
  const fs::path path = folder.write("file", "contents");
  const auto file = MappedFile::open(path);
  EXPECT_EQ(text_of(file->bytes()), "contents");
  EXPECT_EQ(file->path(), path);
}

TEST(MappedFile, MapsEmptyFiles) {
  const ScratchFolder folder;
  const auto file = MappedFile::open(folder.write("empty", ""));
  EXPECT_TRUE(file->bytes().empty());
  file->drop_pages(file->bytes());
}

TEST(MappedFile, FollowsLinks) {
  const ScratchFolder folder;
  folder.write("file", "contents");
  fs::create_symlink("file", folder / "link");
  EXPECT_EQ(text_of(MappedFile::open(folder / "link")->bytes()), "contents");
}

TEST(MappedFile, OutlivesTheName) {
  const ScratchFolder folder;
  const fs::path path = folder.write("file", "contents");
  const auto file = MappedFile::open(path);
  fs::remove(path);
  EXPECT_EQ(text_of(file->bytes()), "contents");
}

TEST(MappedFile, RefusesWhatIsNoReadableFile) {
  expect_unreadable_refused([](const fs::path& path) { MappedFile::open(path); });
}

TEST(MappedFile, DroppedPagesKeepTheirContents) {
  const ScratchFolder folder;
  std::string contents(64 * 1024 + 17, '\0');
  for (size_t i = 0; i < contents.size(); ++i) contents[i] = static_cast<char>('a' + i % 23);
  const auto file = MappedFile::open(folder.write("file", contents));
  ASSERT_EQ(text_of(file->bytes()), contents);
  for (const size_t begin : {0, 1, 4095, 4096, 4097, 65536}) {
    file->drop_pages(file->bytes().subspan(begin));
    file->drop_pages(file->bytes().subspan(begin, 1));
    file->drop_pages(file->bytes().subspan(begin, 0));
    EXPECT_EQ(text_of(file->bytes()), contents);
  }
}

TEST(MappedFile, DropsTheBlocksOfTheRangeOnly) {
  const ScratchFolder folder;
  constexpr size_t kBlock = size_t{2} << 20;
  const auto file = MappedFile::open(folder.write("file", std::string(4 * kBlock, 'x')));
  EXPECT_EQ(text_of(file->bytes()), std::string(4 * kBlock, 'x'));  // faults the pages in
  file->drop_pages(file->bytes().subspan(kBlock + 1, kBlock));
  // /proc/self/pagemap has a word for every page of this process; bit 63 says that it is resident.
  const int pagemap = ::open("/proc/self/pagemap", O_RDONLY);
  ASSERT_GE(pagemap, 0);
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const auto is_resident = [&](size_t offset) {
    uint64_t word = 0;
    const auto at = static_cast<off_t>((reinterpret_cast<uintptr_t>(file->bytes().data()) + offset) / page * 8);
    EXPECT_EQ(::pread(pagemap, &word, sizeof(word), at), sizeof(word));
    return word >> 63 == 1;
  };
  for (const size_t offset : {size_t{0}, kBlock - 1, 3 * kBlock, 4 * kBlock - 1}) EXPECT_TRUE(is_resident(offset));
  for (const size_t offset : {kBlock, 2 * kBlock, 3 * kBlock - 1}) EXPECT_FALSE(is_resident(offset));
  ::close(pagemap);
}

TEST(ReadTextFile, ReadsAllSizes) {
  const ScratchFolder folder;
  for (const size_t size : {0, 1, 4094, 4095, 4096, 4097, 8192, 1'000'000}) {
    std::string contents(size, '\0');
    for (size_t i = 0; i < size; ++i) contents[i] = static_cast<char>(i * 7);
    EXPECT_EQ(read_text_file(folder.write("file", contents)), contents);
  }
}

TEST(ReadTextFile, ReadsFilesThatHideTheirSize) {
  ASSERT_EQ(fs::file_size("/proc/self/status"), 0);
  EXPECT_NE(read_text_file("/proc/self/status").find("VmRSS"), std::string::npos);
}

TEST(ReadTextFile, HasALimit) {
  const ScratchFolder folder;
  const fs::path path = folder.write("file", "12345");
  EXPECT_EQ(read_text_file(path, 5), "12345");
  expect_error([&] { read_text_file(path, 4); }, {path.string(), "at most 4 bytes, got 5"});
  expect_error([] { read_text_file("/proc/self/status", 4); }, {"/proc/self/status", "at most 4 bytes"});
}

TEST(ReadTextFile, RefusesWhatIsNoReadableFile) {
  expect_unreadable_refused([](const fs::path& path) { read_text_file(path); });
}

TEST(AtomicFile, AppearsOnCommit) {
  const ScratchFolder folder;
  const fs::path path = folder / "file";
  AtomicFile file(path);
  file.write("one ");
  file.write(std::as_bytes(std::span(std::string_view("two"))));
  file.write("");
  EXPECT_FALSE(fs::exists(path));
  file.commit();
  EXPECT_EQ(read_text_file(path), "one two");
  EXPECT_EQ(folder.count_entries(), 1);
}

TEST(AtomicFile, LeavesNothingWithoutCommit) {
  const ScratchFolder folder;
  const auto write = [&] {
    AtomicFile file(folder / "file");
    file.write("half of");
    throw std::runtime_error("out of luck");
  };
  EXPECT_THROW(write(), std::runtime_error);
  EXPECT_EQ(folder.count_entries(), 0);
}

TEST(AtomicFile, KeepsTheOldFileWithoutCommit) {
  const ScratchFolder folder;
  const fs::path path = folder.write("file", "old");
  { AtomicFile(path).write("new"); }
  EXPECT_EQ(read_text_file(path), "old");
  EXPECT_EQ(folder.count_entries(), 1);
}

TEST(AtomicFile, ReplacesFilesThatAreMapped) {
  const ScratchFolder folder;
  const fs::path path = folder.write("file", "old contents");
  const auto before = MappedFile::open(path);
  AtomicFile file(path);
  file.write("new");
  file.commit();
  EXPECT_EQ(text_of(before->bytes()), "old contents");
  EXPECT_EQ(text_of(MappedFile::open(path)->bytes()), "new");
}

TEST(AtomicFile, ModeIsTheUsualOneOrTheOldOne) {
  const ScratchFolder folder;
  const mode_t mask = ::umask(022);
  const auto mode_after_writing = [&](const fs::path& path) {
    AtomicFile file(path);
    file.write("x");
    file.commit();
    return fs::status(path).permissions();
  };
  EXPECT_EQ(mode_after_writing(folder / "new"), fs::perms{0644});
  fs::permissions(folder.write("private", "x"), fs::perms{0600});
  EXPECT_EQ(mode_after_writing(folder / "private"), fs::perms{0600});
  ::umask(mask);
}

TEST(AtomicFile, WritesThroughLinks) {
  const ScratchFolder folder;
  fs::create_directory(folder / "below");
  fs::create_symlink("below/file", folder / "link");
  for (const std::string_view contents : {"created", "replaced"}) {
    AtomicFile file(folder / "link");
    file.write(contents);
    file.commit();
    EXPECT_TRUE(fs::is_symlink(folder / "link"));
    EXPECT_EQ(read_text_file(folder / "below/file"), contents);
  }
  EXPECT_EQ(folder.count_entries(), 2);
}

TEST(AtomicFile, WritesPipesDirectly) {
  const ScratchFolder folder;
  const fs::path pipe = folder / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  std::string received;
  std::thread reader([&] { received = std::string(std::istreambuf_iterator(std::ifstream(pipe).rdbuf()), {}); });
  {
    AtomicFile file(pipe);
    file.write(std::string(300'000, 'x'));  // more than a pipe holds: partial writes
    file.commit();
  }
  reader.join();
  EXPECT_EQ(received, std::string(300'000, 'x'));
  EXPECT_TRUE(fs::is_fifo(pipe));
  EXPECT_EQ(folder.count_entries(), 1);
}

TEST(AtomicFile, WritesOpenDescriptorsDirectly) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe(ends.data()), 0);
  {
    AtomicFile file("/dev/fd/" + std::to_string(ends[1]));
    file.write("text");
    file.commit();
  }
  std::array<char, 8> buffer{};
  EXPECT_EQ(::read(ends[0], buffer.data(), buffer.size()), 4);
  EXPECT_EQ(std::string_view(buffer.data()), "text");
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST(AtomicFile, SaysWhyItCannotWrite) {
  const ScratchFolder folder;
  const auto refuse = [&](const fs::path& path, std::string_view reason) {
    SCOPED_TRACE(path);
    expect_error([&] { AtomicFile file(path); }, {path.string(), "must be writable", reason});
  };
  refuse(folder / "missing/file", "No such file or directory");
  refuse(folder.path(), "a directory");
  folder.write("file", "x");
  refuse(folder / "file/below", "Not a directory");
  fs::create_symlink("loop2", folder / "loop1");
  fs::create_symlink("loop1", folder / "loop2");
  refuse(folder / "loop1", "symbolic links");
  if (::geteuid() != 0) {  // root may write everywhere
    fs::create_directory(folder / "locked");
    fs::permissions(folder / "locked", fs::perms{0500});
    refuse(folder / "locked/file", "Permission denied");
  }
  expect_error(
      [] {
        AtomicFile file("/dev/full");
        file.write("x");
      },
      {"/dev/full", "No space left on device"});
}

TEST(AtomicFile, FailedCommitLeavesNothing) {
  const ScratchFolder folder;
  const fs::path path = folder / "file";
  {
    AtomicFile file(path);
    file.write("x");
    fs::create_directories(path / "in the way");  // rename() over a folder fails
    expect_error([&] { file.commit(); }, {path.string(), "must be writable", "directory"});
  }
  EXPECT_EQ(folder.count_entries(), 1);
}

TEST(AtomicFile, LeftoversOfAKilledProcessDoNotMatter) {
  const ScratchFolder folder;
  for (int i = 0; i < 1000; ++i) {
    folder.write(".elapid-" + std::to_string(::getpid()) + "-" + std::to_string(i) + ".tmp", "left over");
  }
  AtomicFile file(folder / "file");
  file.write("x");
  file.commit();
  EXPECT_EQ(read_text_file(folder / "file"), "x");
  EXPECT_EQ(folder.count_entries(), 1001);
}

}  // namespace
}  // namespace elapid
