# Installs the command, the layers' static libraries with their headers, and the CMake package: a project that says
# find_package(elapid) links elapid::elapid and includes "elapid/elapid.h".
include(CMakePackageConfigHelpers)

get_property(elapid_layers GLOBAL PROPERTY ELAPID_LAYERS)

add_library(elapid_all INTERFACE)
add_library(elapid::elapid ALIAS elapid_all)
set_target_properties(elapid_all PROPERTIES EXPORT_NAME elapid)
target_link_libraries(elapid_all INTERFACE ${elapid_layers})

install(TARGETS elapid_all ${elapid_layers} EXPORT elapidTargets)
install(EXPORT elapidTargets NAMESPACE elapid:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/elapid)
install(DIRECTORY src/elapid DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN *.h
        PATTERN cli EXCLUDE PATTERN cpu EXCLUDE PATTERN *_cpu.h EXCLUDE PATTERN *_cuda.h EXCLUDE PATTERN *_reference.h EXCLUDE)
install(TARGETS elapid)

configure_package_config_file(cmake/elapidConfig.cmake.in ${PROJECT_BINARY_DIR}/elapidConfig.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/elapid)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/elapidConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/elapidConfig.cmake ${PROJECT_BINARY_DIR}/elapidConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/elapid)
