// `bazel run` starts programs in a folder of its own and says where the user
// is: relative paths mean that place.
#ifndef MIMO_CLI_WORKING_DIRECTORY_H_
#define MIMO_CLI_WORKING_DIRECTORY_H_

namespace mimo {

// Call first in main(). Exits with 1 when the folder is gone.
void EnterUsersFolder();

}  // namespace mimo

#endif  // MIMO_CLI_WORKING_DIRECTORY_H_
