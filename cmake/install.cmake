# What `cmake --install` puts where: headers, library, command line tool and the package for find_package.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/flashmla)

# Before 1.0 a new minor version may change the interface.
set_target_properties(
  flashmla PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
install(DIRECTORY include/flashmla DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS flashmla EXPORT flashmlaTargets)
install(EXPORT flashmlaTargets NAMESPACE flashmla:: DESTINATION ${package_dir})

if(FLASHMLA_BUILD_CLI)
  file(RELATIVE_PATH lib_from_bin ${CMAKE_INSTALL_FULL_BINDIR} ${CMAKE_INSTALL_FULL_LIBDIR})
  set_target_properties(flashmla_cli PROPERTIES INSTALL_RPATH "$ORIGIN/${lib_from_bin}")
  install(TARGETS flashmla_cli)
endif()

configure_package_config_file(
  cmake/flashmlaConfig.cmake.in ${PROJECT_BINARY_DIR}/cmake/flashmlaConfig.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(
  ${PROJECT_BINARY_DIR}/cmake/flashmlaConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(
  FILES ${PROJECT_BINARY_DIR}/cmake/flashmlaConfig.cmake ${PROJECT_BINARY_DIR}/cmake/flashmlaConfigVersion.cmake
  DESTINATION ${package_dir})
