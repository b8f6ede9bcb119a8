// Package tus takes image files in, resumably: tus 1.0 and the IETF draft "Resumable Uploads for HTTP",
// both by tusd's handler over imgsrv's own byte store. It turns a complete file into a fact; it knows
// nothing of what happens to the file afterwards.
//
// A declared file of an upload session is one tus upload, whose ID is <session>.<n>: n is the file's
// place in the session. So a client that lost the answer to a creation creates it again and gets the same
// upload, and a client that lost everything finds it in GET /api/uploads/{session}.
//
// # From the last byte to the fact
//
//	bytes synced, hash states saved -> hard link into ingress -> upload.file_completed -> intake dropped -> 204
//
// A crash between two of these leaves a full intake without a fact; the next HEAD or PATCH of it, or the
// next start ([Handler.Recover]), goes on from there. Each arrow may be taken twice.
package tus
