include(GNUInstallDirs)
get_property(programs GLOBAL PROPERTY BLOCKSERVE_PROGRAMS)
if(programs)
  install(TARGETS ${programs} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
install(DIRECTORY proto/blockserve DESTINATION ${CMAKE_INSTALL_DATADIR}/blockserve/proto
        FILES_MATCHING PATTERN "*.proto")
