# The ROS wheels of PyPI export an include path of the machine that built them on their
# *__rosidl_generator_py targets, and CMake rejects imported include paths that do not exist.
# Find the packages that the generators would pull in later and keep only paths that exist; on a
# distribution install of ROS 2 all paths exist and nothing changes.
foreach(package unique_identifier_msgs service_msgs action_msgs builtin_interfaces std_msgs)
  find_package(${package} QUIET)
  set(target ${package}::${package}__rosidl_generator_py)
  if(TARGET ${target})
    get_target_property(directories ${target} INTERFACE_INCLUDE_DIRECTORIES)
    if(directories)
      set(existing "")
      foreach(directory ${directories})
        if(EXISTS "${directory}" OR directory MATCHES "^\\$<")
          list(APPEND existing "${directory}")
        endif()
      endforeach()
      set_property(TARGET ${target} PROPERTY INTERFACE_INCLUDE_DIRECTORIES "${existing}")
    endif()
  endif()
endforeach()

# numpy's headers are on the interface of the generated Python target. When the environment lies inside
# the source tree (.venv), CMake refuses to export such a path: keep it for this build only.
function(bess_export_without_source_paths target)
  get_target_property(dirs ${target} INTERFACE_INCLUDE_DIRECTORIES)
  if(NOT dirs)
    return()
  endif()
  set(kept "")
  foreach(dir ${dirs})
    string(FIND "${dir}/" "${CMAKE_CURRENT_SOURCE_DIR}/" at)
    if(at EQUAL 0)
      list(APPEND kept "$<BUILD_INTERFACE:${dir}>")
    else()
      list(APPEND kept "${dir}")
    endif()
  endforeach()
  set_property(TARGET ${target} PROPERTY INTERFACE_INCLUDE_DIRECTORIES "${kept}")
endfunction()
