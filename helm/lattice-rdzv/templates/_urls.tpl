{{/* Where etcd listens, what it says of itself, and where agents are sent. */}}

{{- define "lattice.clientScheme" -}}{{ ternary "https" "http" .Values.tls.client.enabled }}{{- end -}}
{{- define "lattice.peerScheme" -}}{{ ternary "https" "http" .Values.tls.peer.enabled }}{{- end -}}

{{- define "lattice.host" -}}
{{- $root := index . 1 -}}
{{- printf "%s.%s.svc.%s" (index . 0) $root.Release.Namespace $root.Values.clusterDomain -}}
{{- end -}}

{{- define "lattice.clientHost" -}}{{- include "lattice.host" (list .Values.clientService.name .) -}}{{- end -}}

{{/* (list "lattice-rdzv-0" root) */}}
{{- define "lattice.memberHost" -}}
{{- printf "%s.%s" (index . 0) (include "lattice.host" (list (include "lattice.membersService" (index . 1)) (index . 1))) -}}
{{- end -}}

{{/* The Services may name two ports of etcd for clients: then it listens on both. */}}
{{- define "lattice.listenClientURLs" -}}
{{- $scheme := include "lattice.clientScheme" . -}}
{{- $ports := list (int .Values.clientService.internalPort) (int .Values.serverService.clientPort.internalPort) | uniq -}}
{{- $urls := list -}}
{{- range $ports -}}{{- $urls = append $urls (printf "%s://0.0.0.0:%d" $scheme .) -}}{{- end -}}
{{- if and .Values.auth.enabled .Values.tls.client.enabled -}}
{{- $urls = append $urls (printf "http://127.0.0.1:%d" (int .Values.auth.loopbackPort)) -}}
{{- end -}}
{{- join "," $urls -}}
{{- end -}}

{{- define "lattice.advertiseClientURL" -}}
{{- $scheme := include "lattice.clientScheme" . -}}
{{- if include "lattice.stateful" . -}}
{{- printf "%s://%s:%d" $scheme (include "lattice.memberHost" (list "$(POD_NAME)" .)) (int .Values.clientService.internalPort) -}}
{{- else -}}
{{- printf "%s://%s:%d" $scheme (include "lattice.host" (list .Values.serverService.name .)) (int .Values.serverService.clientPort.externalPort) -}}
{{- end -}}
{{- end -}}

{{/*
Under which its peers know a member. One alone has none, so a URL that nobody ever calls will do, and has to be there before
DNS is: some etcds look it up before they start. Not the pod's address: IPv6 needs brackets, and etcds built with newer Go do
not start with IPv4 in brackets. Not `localhost`: etcd takes its own default, where it is given, for the address of the
machine's default route, and then misses itself in `--initial-cluster`.
*/}}
{{- define "lattice.advertisePeerURL" -}}
{{- $host := "127.0.0.1" -}}
{{- if include "lattice.several" . -}}{{- $host = include "lattice.memberHost" (list "$(POD_NAME)" .) -}}{{- end -}}
{{- printf "%s://%s:%d" (include "lattice.peerScheme" .) $host (int .Values.serverService.serverPort.internalPort) -}}
{{- end -}}

{{- define "lattice.initialCluster" -}}
{{- if include "lattice.several" . -}}
{{- $members := list -}}
{{- range $index := until (int .Values.replicaCount) -}}
{{- $name := printf "%s-%d" (include "lattice.name" $) $index -}}
{{- $members = append $members (printf "%s=%s://%s:%d" $name (include "lattice.peerScheme" $) (include "lattice.memberHost" (list $name $)) (int $.Values.serverService.serverPort.internalPort)) -}}
{{- end -}}
{{- join "," $members -}}
{{- else -}}
{{- printf "$(POD_NAME)=%s" (include "lattice.advertisePeerURL" .) -}}
{{- end -}}
{{- end -}}

{{/* What agents are given: one endpoint for each member, so that they go on to the next one by themselves. */}}
{{- define "lattice.endpoints" -}}
{{- if include "lattice.external" . -}}
{{- join "," .Values.external.endpoints -}}
{{- else if include "lattice.several" . -}}
{{- $endpoints := list -}}
{{- range $index := until (int .Values.replicaCount) -}}
{{- $host := include "lattice.memberHost" (list (printf "%s-%d" (include "lattice.name" $) $index) $) -}}
{{- $endpoints = append $endpoints (printf "%s://%s:%d" (include "lattice.clientScheme" $) $host (int $.Values.clientService.internalPort)) -}}
{{- end -}}
{{- join "," $endpoints -}}
{{- else -}}
{{- printf "%s://%s:%d" (include "lattice.clientScheme" .) (include "lattice.clientHost" .) (int .Values.clientService.externalPort) -}}
{{- end -}}
{{- end -}}
