# The generators of rosidl, ten of them, each parse all interfaces again: let them share what one has parsed
# (see parse_once/sitecustomize.py). What they generate is the same. Older versions of CMake cannot add to a list in
# the environment of a command and build as ever, only slower.
if(CMAKE_VERSION VERSION_GREATER_EQUAL 3.25)
  set_property(GLOBAL PROPERTY RULE_LAUNCH_CUSTOM
    "\"${CMAKE_COMMAND}\" -E env --modify \"PYTHONPATH=path_list_prepend:${CMAKE_CURRENT_SOURCE_DIR}/cmake/parse_once\" \"BESS_PARSED=${CMAKE_CURRENT_BINARY_DIR}/parsed\"")
endif()
