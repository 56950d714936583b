# Most of the time of a build goes into the headers that each of some 600 generated sources reads again:
# compiled in batches it takes less than half. Left apart are the sources of <project>__rosidl_generator_c
# (static names repeat from file to file) and of introspection_cpp (a type is used before its own file).
function(bess_compile_in_batches project)
  set(targets ${project}__rosidl_generator_py)
  foreach(typesupport fastrtps_c fastrtps_cpp introspection_c c cpp)
    list(APPEND targets ${project}__rosidl_typesupport_${typesupport})
  endforeach()
  foreach(target ${targets})
    if(TARGET ${target})
      set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 80)
    endif()
  endforeach()
  # Tables only, nothing to optimise.
  if(TARGET ${project}__rosidl_typesupport_introspection_cpp)
    target_compile_options(${project}__rosidl_typesupport_introspection_cpp PRIVATE -O0)
  endif()
endfunction()
