// Package oidc knows callers by tokens that somebody else has signed: those that GitHub Actions, GitLab,
// Kubernetes and other OpenID Connect issuers give to the jobs that they run, so that a job can publish without
// a stored secret. Trust rules (events.Trust) say whose tokens are taken and what they may do.
//
// [Rules] follows the rules that there are; [Verifier] checks tokens against them. The package knows no HTTP
// route and no tokens of imgsrv's own.
package oidc
