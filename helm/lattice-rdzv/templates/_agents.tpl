{{/*
The variables that agents read. `LATTICE_RDZV_CLIENT_SERVICE_HOST` and `_PORT` are not among them: Kubernetes sets these, and a
ConfigMap would override them.
*/}}

{{/* The tenant of each of `auth.users`, by name. Empty if the user can access all. */}}
{{- define "lattice.tenants" -}}
{{- range .Values.auth.users }}
{{ .name | quote }}: {{ default "" .tenant | quote }}
{{- end }}
{{- end -}}

{{/*
The namespaces of agents, the release's own first: a list of `name`, `user`, and `tenant`. A namespace without its own user gets the first of
`auth.users`, or `external.user`. A namespace without its own tenant gets the one tenant of its user, or `agents.tenant`.
*/}}
{{- define "lattice.agentNamespaces" -}}
{{- $tenants := dict -}}
{{- $first := .Values.external.user -}}
{{- if .Values.auth.enabled -}}
{{- $first = (first .Values.auth.users).name -}}
{{- $tenants = include "lattice.tenants" . | fromYaml -}}
{{- end -}}
{{- $seen := list -}}
{{- range prepend (default list .Values.agents.namespaces) .Release.Namespace -}}
{{- $one := ternary (dict "name" .) . (kindIs "string" .) -}}
{{- if not (has $one.name $seen) -}}
{{- $seen = append $seen $one.name -}}
{{- $user := default $first $one.user }}
- name: {{ $one.name }}
  user: {{ $user | quote }}
  tenant: {{ default (default $.Values.agents.tenant (get $tenants $user)) $one.tenant | quote }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The data of the ConfigMap: (dict "root" . "namespace" one of "lattice.agentNamespaces") */}}
{{- define "lattice.agentEnvironment" -}}
{{- $values := .root.Values -}}
LATTICE_RDZV_BACKEND: {{ $values.rendezvous.backend | quote }}
{{- if $values.agents.configMap.includeEndpoint }}
LATTICE_RDZV_ENDPOINTS: {{ include "lattice.endpoints" .root | quote }}
{{- end }}
{{- with .namespace.tenant }}
LATTICE_RDZV_TENANT: {{ . | quote }}
{{- end }}
{{- if $values.tls.client.enabled }}
LATTICE_RDZV_CACERT: {{ printf "%s/ca.crt" $values.agents.tlsMountPath | quote }}
{{- if $values.tls.client.requireClientCert }}
LATTICE_RDZV_CERT: {{ printf "%s/tls.crt" $values.agents.tlsMountPath | quote }}
LATTICE_RDZV_KEY: {{ printf "%s/tls.key" $values.agents.tlsMountPath | quote }}
{{- end }}
{{- end }}
{{- with .namespace.user }}
LATTICE_RDZV_USER: {{ . | quote }}
LATTICE_RDZV_PASSWORD_FILE: {{ printf "%s/%s" $values.agents.authMountPath . | quote }}
{{- end }}
{{- end -}}

{{/* The pods that a NetworkPolicy admits as agents. */}}
{{- define "lattice.agentPeers" -}}
{{- $policy := .Values.networkPolicy -}}
{{- $pods := toYaml (default dict $policy.agentPodSelector) -}}
- podSelector:
    {{- $pods | nindent 4 }}
{{- range rest (include "lattice.agentNamespaces" . | fromYamlArray) }}
- namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ .name }}
  podSelector:
    {{- $pods | nindent 4 }}
{{- end }}
{{- with $policy.agentNamespaceSelector }}
- namespaceSelector:
    {{- toYaml . | nindent 4 }}
  podSelector:
    {{- $pods | nindent 4 }}
{{- end }}
{{- end -}}

{{/* Admits DNS by its ports alone, because a cluster's DNS server may be a pod or run on each Kubernetes node. OpenShift's pods listen on 5353. */}}
{{- define "lattice.dnsEgress" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
    {{- if .Capabilities.APIVersions.Has "security.openshift.io/v1" }}
    - {port: 5353, protocol: UDP}
    - {port: 5353, protocol: TCP}
    {{- end }}
{{- end -}}
