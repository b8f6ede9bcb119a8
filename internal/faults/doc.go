// Package faults marks the places at which a test ends the process. In a build without the tag faults it does nothing and costs
// nothing; with it, environment variables say at which place:
//
//	IMGSRV_FAULT      PLACE:N   end this process with SIGKILL at the N-th time (from 1) that it comes to the place
//	IMGSRV_FAULT_LOG  FILE      write the place's name to the file, a line each time
//
// A place is an operation and what it is about, with whatever differs from run to run taken out:
// "before rename cas/sha256/XX/H". It knows nothing of the code that is marked.
package faults
