{{/* The version of etcd in the image, and the features that depend on it. */}}

{{- define "lattice.image" -}}
{{- if not (kindIs "string" .Values.image) -}}
{{- fail (printf "`image` must be one string of registry, name and tag, for example --set image=quay.io/coreos/etcd:v3.5.21. `image` is: %s" (toJson .Values.image)) -}}
{{- end -}}
{{- .Values.image -}}
{{- end -}}

{{/* The version from `etcd.version`, or otherwise from the image's tag. A digest or a registry's port is not a tag. Empty if neither has a version. */}}
{{- define "lattice.readVersion" -}}
{{- $tag := regexFind ":[^:/]+$" (regexReplaceAll "@.*$" (include "lattice.image" .) "") | trimPrefix ":" -}}
{{- regexFind "^v?[0-9]+[.][0-9]+[.][0-9]+" (.Values.etcd.version | default $tag) | trimPrefix "v" -}}
{{- end -}}

{{- define "lattice.version" -}}
{{- $version := include "lattice.readVersion" . -}}
{{- if not $version -}}
{{- fail (printf "the chart derives etcd's flags and probes from its version, but the image's tag does not begin with one (such as `v3.5.21`); set `etcd.version`, for example --set etcd.version=3.5.21: `%s`" (.Values.etcd.version | default (include "lattice.image" .))) -}}
{{- end -}}
{{- $version -}}
{{- end -}}

{{/* (dict "root" . "range" ">=3.6.0") */}}
{{- define "lattice.versionIs" -}}
{{- if semverCompare .range (include "lattice.version" .root) -}}true{{- end -}}
{{- end -}}

{{/* etcd's v2 API, which has separate data and users. */}}
{{- define "lattice.enableV2" -}}
{{- $given := .Values.etcd.enableV2 | toString -}}
{{- if eq $given "true" -}}true
{{- else if and (eq $given "auto") (not (include "lattice.stateful" .)) (not .Values.auth.enabled) (include "lattice.versionIs" (dict "root" . "range" "<3.6.0")) -}}true
{{- end -}}
{{- end -}}

{{/* Releases with `/livez` and `/readyz`. */}}
{{- define "lattice.hasLivez" -}}
{{- include "lattice.versionIs" (dict "root" . "range" ">=3.4.29, <3.5.0 || >=3.5.11") -}}
{{- end -}}

{{/* Releases without the vulnerabilities that were fixed in 2026. */}}
{{- define "lattice.supportedVersion" -}}
{{- include "lattice.versionIs" (dict "root" . "range" ">=3.5.33, <3.6.0 || >=3.6.14, <3.7.0 || >=3.7.1") -}}
{{- end -}}
