#pragma once

// Zip archives whose members are stored as they are, which is all that torch.save writes: members are views of the
// archive. Reads zip64. Compressed and encrypted members, several volumes, members that overlap or share a name, and
// tables that contradict each other are errors.

#include "elapid/io/file.h"

#include <functional>
#include <map>
#include <string>

namespace elapid {

// By name. Names are text of unknown origin: look members up, never open files by them.
using ZipMembers = std::map<std::string, Bytes, std::less<>>;

// `what` names the archive in errors; the members view `bytes`.
ZipMembers read_stored_zip(Bytes bytes, const std::string& what);

}  // namespace elapid
