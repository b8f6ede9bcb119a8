// Package simplestreams reads the documents of somebody else's simplestreams server, or of a folder laid out as one, by the
// rules of the clients: what Incus and LXD would list, this package lists, and it says what was passed over and why. It reads
// bytes that it is given; it must not know where they come from, nor what becomes of the images.
//
// Sources of the rules: lxc/incus v7 and LXD 5.0.2, shared/simplestreams/{index,products,simplestreams}.go.
package simplestreams
