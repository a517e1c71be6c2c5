{{/* Which etcd the image holds, and what follows from that. */}}

{{- define "lattice.image" -}}
{{- if not (kindIs "string" .Values.image) -}}
{{- fail (printf "the image of etcd is one string, registry, name and tag together, for example --set image=quay.io/coreos/etcd:v3.5.21. `image` is: %s" (toJson .Values.image)) -}}
{{- end -}}
{{- .Values.image -}}
{{- end -}}

{{/* From `etcd.version`, else from the image's tag; a digest or a registry's port is no tag. Empty where neither tells. */}}
{{- define "lattice.readVersion" -}}
{{- $tag := regexFind ":[^:/]+$" (regexReplaceAll "@.*$" (include "lattice.image" .) "") | trimPrefix ":" -}}
{{- regexFind "^v?[0-9]+[.][0-9]+[.][0-9]+" (.Values.etcd.version | default $tag) | trimPrefix "v" -}}
{{- end -}}

{{- define "lattice.version" -}}
{{- $version := include "lattice.readVersion" . -}}
{{- if not $version -}}
{{- fail (printf "the version of etcd decides its flags and probes, and the image has no tag that begins with one (such as `v3.5.21`); set `etcd.version`, for example --set etcd.version=3.5.21: `%s`" (.Values.etcd.version | default (include "lattice.image" .))) -}}
{{- end -}}
{{- $version -}}
{{- end -}}

{{/* (list root ">=3.6.0") */}}
{{- define "lattice.versionIs" -}}
{{- if semverCompare (index . 1) (include "lattice.version" (index . 0)) -}}true{{- end -}}
{{- end -}}

{{/* etcd's v2 API, which keeps data and users of its own. */}}
{{- define "lattice.enableV2" -}}
{{- $given := .Values.etcd.enableV2 | toString -}}
{{- if eq $given "true" -}}true
{{- else if and (eq $given "auto") (not (include "lattice.stateful" .)) (not .Values.auth.enabled) (include "lattice.versionIs" (list . "<3.6.0")) -}}true
{{- end -}}
{{- end -}}

{{/* Releases with `/livez` and `/readyz`. */}}
{{- define "lattice.hasLivez" -}}
{{- include "lattice.versionIs" (list . ">=3.4.29, <3.5.0 || >=3.5.11") -}}
{{- end -}}

{{/* Releases without a known hole that was closed in 2026. */}}
{{- define "lattice.supportedVersion" -}}
{{- include "lattice.versionIs" (list . ">=3.5.33, <3.6.0 || >=3.6.14, <3.7.0 || >=3.7.1") -}}
{{- end -}}
